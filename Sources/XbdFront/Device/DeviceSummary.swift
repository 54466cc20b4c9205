// SPDX-License-Identifier: Apache-2.0
//
// The block devices of a domain, as `xbd-user list` shows them.

public import Blkif
public import Xen

/// One block device of this domain.
public struct DeviceSummary: Sendable, Equatable {
  /// Its number.
  public let device: VirtualDevice
  /// The frontend's directory.
  public let frontend: String
  /// The backend's directory; empty when the node is missing.
  public let backend: String
  /// The backend's domain; nil when the node is missing or malformed.
  public let backendDomain: DomainID?
  /// The frontend's state.
  public let frontendState: XenbusState
  /// The backend's state.
  public let backendState: XenbusState
  /// The kernel driver that has it; nil when none does.
  public let kernelDriver: String?

  /// Every block device of the domain that a xenstore connection belongs to, in the order of their numbers.
  ///
  /// - Parameter kernel: whom to ask for drivers; nil where this machine's kernel is not in that domain.
  public static func all(
    in store: any XenStore, kernel: KernelDriver? = KernelDriver()
  ) throws(XbdError) -> [DeviceSummary] {
    do throws(XenError) {
      var found: [DeviceSummary] = []
      for name in try store.list("device/vbd") ?? [] {
        guard let device = VirtualDevice(name) else { continue }
        found.append(try DeviceSummary(device, "device/vbd/\(name)", store, kernel))
      }
      return found.sorted { $0.device.number < $1.device.number }
    } catch {
      throw XbdError(error, during: "listing device/vbd")
    }
  }

  private init(
    _ device: VirtualDevice, _ path: String, _ store: any XenStore, _ kernel: KernelDriver?
  ) throws(XenError) {
    self.device = device
    frontend = path
    backend = try store.read(path + "/" + Key.backend) ?? ""
    let id = try store.readBytes(path + "/" + Key.backendID) ?? []
    backendDomain = (try? Decimal.parse(id, in: 0...0x7FEF)).map { DomainID(UInt16($0)) }
    frontendState = try Self.state(path, store)
    backendState = backend.isEmpty ? .unknown : try Self.state(backend, store)
    kernelDriver = kernel?.owner(of: device)
  }

  private static func state(_ directory: String, _ store: any XenStore) throws(XenError) -> XenbusState {
    // A backend's directory may be closed to us; that is a state we do not know, not the end of the list.
    guard let bytes = try? store.readBytes(directory + "/" + Key.state),
      let number = try? Decimal.parse(bytes, in: 0...8)
    else { return .unknown }
    return XenbusState(rawValue: UInt8(number)) ?? .unknown
  }
}
