// SPDX-License-Identifier: Apache-2.0
//
// What the control thread reads of xenstore.

internal import Blkif
internal import Xen

extension DeviceDriver {
  /// Makes values of nodes; one that is malformed ends what they are wanted for.
  func wellFormed<Value>(
    _ body: () throws(MalformedNode) -> Value
  ) throws(XbdError) -> Value {
    do throws(MalformedNode) {
      return try body()
    } catch {
      throw XbdError(.malformed, "the backend's \(error) in \(location.backend)")
    }
  }

  func exists(_ path: String) throws(XbdError) -> Bool { try bytes(path) != nil }

  func bytes(_ path: String) throws(XbdError) -> [UInt8]? {
    do throws(XenError) {
      return try store.readBytes(path)
    } catch {
      throw XbdError(error, during: "reading \(path)")
    }
  }

  func state(_ path: String) throws(XbdError) -> XenbusState {
    do throws(XenError) {
      return try Self.state(path, in: store)
    } catch {
      throw XbdError(error, during: "reading \(path)")
    }
  }

  /// What a state node says; `.unknown` when it says nothing that is one.
  static func state(_ path: String, in store: any XenStoreOperations) throws(XenError) -> XenbusState {
    do throws(XenError) {
      guard let bytes = try store.readBytes(path), let number = try? Decimal.parse(bytes, in: 0...8) else {
        return .unknown
      }
      return XenbusState(rawValue: UInt8(number)) ?? .unknown
    } catch {
      // A node that is gone is one that may not be read, where its parents may not be read either.
      if error.code == .denied { return .unknown }
      throw error
    }
  }

  /// Whether the toolstack wants the device to stay.
  ///
  /// - Returns: nil when nothing says so any more: QEMU removes the nodes of a device that was taken away before the
  ///   frontend has come to look, and what it said of it last still counts.
  func online() throws(XbdError) -> Bool? {
    let path = location.backend + "/" + Key.online
    do throws(XenError) {
      return try store.readBytes(path).map { $0 != Array("0".utf8) }
    } catch {
      if error.code == .denied { return nil }
      throw XbdError(error, during: "reading \(path)")
    }
  }

  func backendState() throws(XbdError) -> XenbusState { try state(location.backendState) }

  func backendNodes() throws(XbdError) -> Nodes {
    do throws(XenError) {
      return try location.nodes(of: location.backend, in: store)
    } catch {
      throw XbdError(error, during: "reading \(location.backend)")
    }
  }
}
