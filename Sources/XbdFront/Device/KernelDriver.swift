// SPDX-License-Identifier: Apache-2.0
//
// Whether the kernel's own blkfront has a device. Two frontends on one ring would tear each other's requests
// apart, so ours refuses such a device and says how to free it.

public import Blkif
internal import Platform

/// The kernel's view of a domain's xenbus devices, in sysfs.
public struct KernelDriver: Sendable {
  private let root: String

  /// - Parameter root: where sysfs is; another place only in tests.
  public init(root: String = "/sys") {
    self.root = root
  }

  /// The driver that is bound to a block device.
  ///
  /// - Returns: its name, usually "vbd"; nil when none is.
  public func owner(of device: VirtualDevice) -> String? {
    SymbolicLink.targetName("\(root)/bus/xen/devices/vbd-\(device.number)/driver")
  }

  /// Refuses a device that the kernel drives.
  public func requireFree(_ device: VirtualDevice) throws(XbdError) {
    guard let driver = owner(of: device) else { return }
    throw XbdError(
      .inUse,
      "the kernel's blkfront drives \(device); to free it: "
        + "echo vbd-\(device.number) > \(root)/bus/xen/drivers/\(driver)/unbind")
  }
}
