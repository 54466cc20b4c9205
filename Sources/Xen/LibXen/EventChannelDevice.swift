// SPDX-License-Identifier: Apache-2.0
//
// libxenevtchn: a handle on /dev/xen/evtchn, and its calls with numbers.

internal import CXen

/// The open device; whoever opened it closes it, or leaves it to the process's end.
///
/// The library's handle is never written to after it was opened, and a call is one ioctl, read or write on its
/// descriptor: they may be made by any thread.
@safe struct EventChannelDevice: Sendable {
  // SAFETY: what xenevtchn_open returned to `init`, valid until `close`; only read by all that follows.
  private nonisolated(unsafe) let handle: OpaquePointer

  /// Opens /dev/xen/evtchn.
  ///
  /// - Returns: nil with the reason in errno.
  init?() {
    // SAFETY: no logger of ours; the library makes one, and says no with NULL.
    guard let opened = unsafe xenevtchn_open(nil, 0) else { return nil }
    unsafe handle = opened
  }

  /// Closes the device; the value and its copies are not to be used again.
  @unsafe func close() {
    // SAFETY: open until now, and the last use; what makes that so is the caller's to say.
    _ = unsafe xenevtchn_close(handle)
  }

  // SAFETY of all calls: the handle is open, because whoever could use it after `close` has promised not to; all that is
  // handed to the library beside it are numbers, and the driver looks whether a port is this handle's.

  var fileDescriptor: Int32 { unsafe xenevtchn_fd(handle) }

  func bindUnbound(remote: DomainID) -> Int32 {
    unsafe xenevtchn_bind_unbound_port(handle, UInt32(remote.rawValue))
  }
  func bindInterdomain(remote: DomainID, port: UInt32) -> Int32 {
    unsafe xenevtchn_bind_interdomain(handle, UInt32(remote.rawValue), port)
  }
  // SAFETY: see above.
  func notify(_ port: UInt32) -> Bool { unsafe xenevtchn_notify(handle, port) == 0 }
  func pending() -> Int32 { unsafe xenevtchn_pending(handle) }
  func unmask(_ port: UInt32) -> Bool { unsafe xenevtchn_unmask(handle, port) == 0 }
  func unbind(_ port: UInt32) -> Bool { unsafe xenevtchn_unbind(handle, port) == 0 }
}
