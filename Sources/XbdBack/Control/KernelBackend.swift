// SPDX-License-Identifier: Apache-2.0
//
// Whether the kernel of this domain has a backend for a device. Linux makes a device of every directory under
// backend/ and binds it to the driver of its kind, blkback for "vbd", as soon as that is loaded.

internal import Blkif
internal import Glibc
internal import Platform

/// The kernel's view of the backends of its domain, in sysfs.
public struct KernelBackend: Sendable {
  private let root: String

  /// - Parameter root: where sysfs is; another place only in tests.
  public init(root: String = "/sys") {
    self.root = root
  }

  /// What the kernel does with a device, as a sentence.
  ///
  /// - Returns: nil when it leaves the device to us.
  public func claim(on directories: DeviceDirectories) -> String? {
    let device = "\(directories.kind)-\(directories.frontend)-\(directories.device.number)"
    if let driver = driver(of: device) {
      return "the kernel's backend \"\(driver)\" has \(directories.backendPath); to free it: "
        + "echo \(device) > \(root)/bus/xen-backend/drivers/\(driver)/unbind"
    }
    // SAFETY: strings that the calls read.
    guard unsafe access("\(root)/bus/xen-backend/devices/\(device)", F_OK) != 0,
      unsafe access("\(root)/bus/xen-backend/drivers/\(directories.kind)", F_OK) == 0
    else { return nil }
    // It would be bound the moment its nodes appear.
    return
      "the kernel's backend takes every new device of kind \"\(directories.kind)\"; choose another with --kind, "
      + "or unload its module"
  }

  private func driver(of device: String) -> String? {
    SymbolicLink.targetName("\(root)/bus/xen-backend/devices/\(device)/driver")
  }
}
