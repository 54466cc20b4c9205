// SPDX-License-Identifier: Apache-2.0
//
// Xen as a guest's own libraries give it: libxengnttab, libxenevtchn and libxenstore over the devices that
// Linux has under /dev/xen. Linked, not loaded by hand, so that a preloaded drop-in can take their place.

internal import CXen
internal import Glibc
internal import Platform
internal import SystemPackage

/// The Xen that this machine runs on, through libxen.
public struct LibXenSystem: XenSystem {
  private let xenStoreSocket: String?
  private let openChannels = LibXenOpenChannels()

  /// The system's own Xen.
  ///
  /// - Parameter xenStoreSocket: the path of a xenstore socket to use; nil leaves the choice to libxenstore
  ///   (`XENSTORED_PATH`, then /run/xenstored/socket, then /dev/xen/xenbus).
  public init(xenStoreSocket: String? = nil) {
    self.xenStoreSocket = xenStoreSocket
  }

  /// "libxen", and the socket if one was given.
  public var description: String {
    xenStoreSocket.map { "libxen, xenstore at \($0)" } ?? "libxen"
  }

  /// The machine's own Xen; all its processes are in one domain, unless they were given xenstores of their own.
  public var identity: String? {
    "libxen \(xenStoreSocket ?? LibXenStoreEnvironment.socket ?? "")"
  }

  /// This machine's kernel is in the same domain, unless the libraries are a preloaded drop-in's: their domain has no
  /// devices of the machine's own xenbus.
  public var sharesDevicesWithKernel: Bool { cxen_has_own_libxen() != 0 }

  /// Opens /dev/xen/gntalloc.
  public func openGrantSharing() throws(XenError) -> any GrantSharing { try LibXenGrantSharing() }

  /// Opens /dev/xen/gntdev.
  public func openGrantMapping() throws(XenError) -> any GrantMapping { try LibXenGrantMapping() }

  /// Opens /dev/xen/evtchn.
  public func openEventChannels() throws(XenError) -> any EventChannels {
    try LibXenEventChannels(among: openChannels)
  }

  /// Connects to xenstore.
  public func openXenStore() throws(XenError) -> any XenStore {
    if let xenStoreSocket { return try LibXenStore(socket: xenStoreSocket) }
    return try LibXenStore()
  }

  /// Has Linux's evtchn driver forget the ports that the domain had (LibXenRestore.swift).
  ///
  /// A preloaded drop-in has no driver, and can close what is left.
  public func domainWasRestored() throws(XenError) {
    // SAFETY: a constant string.
    guard unsafe access("/dev/xen/evtchn", F_OK) == 0 else { return }
    try openChannels.forgetPorts()
  }
}

/// The sentence for a device of Xen that could not be opened.
///
/// - Parameters:
///   - errno: what opening left.
///   - device: its path.
///   - module: the kernel module that makes it.
func cannotOpen(_ errno: Errno, device: String, module: String) -> XenError {
  switch errno {
  // SAFETY: a constant string.
  case .noSuchFileOrDirectory where unsafe access("/dev/xen", F_OK) != 0:
    XenError(
      .unavailable, "\(device) does not exist: this machine is no Xen guest; use the loopback instead",
      errno: errno)
  case .noSuchFileOrDirectory, .noSuchAddressOrDevice:
    XenError(
      .unavailable, "\(device) cannot be opened; load its driver with `modprobe \(module)`", errno: errno)
  case .permissionDenied, .notPermitted:
    XenError(
      .denied, "\(device) may not be opened by this user; run as root or change its permissions", errno: errno
    )
  default:
    XenError(.unavailable, "\(device) cannot be opened: \(errno)", errno: errno)
  }
}

extension Optional where Wrapped == UnmapNotification {
  /// The two numbers that libxengnttab takes, all ones meaning none.
  var rawNumbers: (offset: UInt32, port: UInt32) {
    (
      offset: self?.clearByteAt.flatMap { UInt32(exactly: $0) } ?? .max,
      port: self?.notify?.rawValue ?? .max
    )
  }
}
