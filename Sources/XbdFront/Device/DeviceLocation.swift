// SPDX-License-Identifier: Apache-2.0
//
// Where a device is in xenstore, and who its backend is. The backend's path is always read, never made up: its
// kind is the backend's own choice (vbd, qdisk, vbd3).

public import Blkif
public import Xen

/// The two xenstore directories of a block device.
public struct DeviceLocation: Sendable, Equatable {
  /// The frontend's directory, relative to the own domain or absolute.
  public let frontend: String
  /// The backend's directory.
  public let backend: String
  /// The backend's domain.
  public let backendDomain: DomainID
  /// The virtual device number.
  public let device: VirtualDevice

  /// The frontend's state node.
  public var frontendState: String { frontend + "/" + Key.state }
  /// The backend's state node.
  public var backendState: String { backend + "/" + Key.state }
  /// Where Linux's backend leaves a sentence about what went wrong, seen from the frontend.
  var backendErrorPath: String {
    let parts = backend.split(separator: "/")
    // /local/domain/<back>/backend/… has its errors in /local/domain/<back>/error/backend/…
    guard parts.count > 3, parts[0] == "local", parts[1] == "domain" else { return backend + "/error" }
    return "/local/domain/\(parts[2])/error/" + parts.dropFirst(3).joined(separator: "/") + "/error"
  }

  /// Finds a device.
  ///
  /// - Parameters:
  ///   - name: a virtual device number (51728), a name (xvdb), or the path of a frontend directory.
  ///   - store: the domain's xenstore.
  public init(_ name: String, in store: any XenStore) throws(XbdError) {
    if name.contains("/") {
      let last = name.split(separator: "/").last.map(String.init) ?? ""
      guard let device = VirtualDevice(last) else {
        throw XbdError(
          .noDevice, "\(name) is no path of a block device: its last part is not a virtual device number")
      }
      try self.init(path: name, device, in: store)
    } else if let device = VirtualDevice(name) {
      try self.init(path: "device/vbd/\(device.number)", device, in: store)
    } else {
      throw XbdError(
        .noDevice,
        "\"\(name)\" is no block device: give a virtual device number (51728), a name (xvdb) or a xenstore path"
      )
    }
  }

  /// Looks again: after a migration the backend's path and domain may be others.
  init(again location: DeviceLocation, in store: any XenStore) throws(XbdError) {
    try self.init(path: location.frontend, location.device, in: store)
  }

  private init(path: String, _ device: VirtualDevice, in store: any XenStore) throws(XbdError) {
    do throws(XenError) {
      guard let backend = try store.read(path + "/" + Key.backend), !backend.isEmpty else {
        throw XenError(
          .notFound, "this domain has no block device \(device): \(path)/\(Key.backend) does not exist")
      }
      let id = try store.readBytes(path + "/" + Key.backendID) ?? []
      guard let number = try? Decimal.parse(id, in: 0...UInt64(DomainID.firstReserved.rawValue - 1)) else {
        throw XenError(
          .invalid,
          "\(path)/\(Key.backendID) is \"\(ForeignText.printable(id, atMost: 64))\" where a domain is expected"
        )
      }
      frontend = path
      self.backend = backend
      backendDomain = DomainID(UInt16(number))
      self.device = device
    } catch {
      switch error.code {
      case .notFound: throw XbdError(.noDevice, error.message)
      case .invalid: throw XbdError(.malformed, error.message)
      default: throw XbdError(error, during: "reading \(path)")
      }
    }
  }

  /// Every node directly under a directory, with its value.
  func nodes(of directory: String, in store: any XenStoreOperations) throws(XenError) -> Nodes {
    var nodes: Nodes = [:]
    for name in try store.list(directory) ?? [] where name.utf8.count < 256 {
      if let value = try store.readBytes(directory + "/" + name) { nodes[name] = value }
    }
    return nodes
  }
}
