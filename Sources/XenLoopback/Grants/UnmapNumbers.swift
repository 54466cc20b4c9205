// SPDX-License-Identifier: Apache-2.0
//
// An unmap notification as it is in the tables.

internal import Platform
internal import Xen

/// What happens at a page's end.
struct UnmapNumbers {
  /// The port of the own domain to send on; 0 for none.
  var port: UInt32 = 0
  /// The handle that the port belonged to when the notification was asked for.
  ///
  /// Linux keeps the port for as long as the page; here its number may belong to somebody else by then, who is not
  /// the one meant.
  var handle: UInt32 = 0
  /// The byte of the page to clear; all ones for none.
  var clearOffset: UInt32 = .max
}

extension LoopbackConnection {
  /// Sends the event of an unmap notification, if its port is still the one it was.
  func send(_ numbers: UnmapNumbers) {
    guard numbers.port != 0 else { return }
    _ = try? control.call(ControlMessage(.send, a: numbers.port, b: numbers.handle))
  }

  /// Checks what an unmap notification names and turns it into numbers for the tables.
  func numbers(of notification: UnmapNotification?) throws(XenError) -> UnmapNumbers {
    var numbers = UnmapNumbers()
    if let offset = notification?.clearByteAt {
      guard offset >= 0, offset < Page.size else {
        throw XenError(.invalid, "cannot clear byte \(offset) of a page on its end; a page has 4096")
      }
      numbers.clearOffset = UInt32(offset)
    }
    if let port = notification?.notify?.rawValue {
      guard port > 0, port < UInt32(DomainLayout.portCount),
        PortEntry.kind(memory.port(port).state.loadAcquiring()) != .free
      else {
        throw XenError(
          .invalid, "cannot notify port \(port) of domain \(domain) on a page's end; it is not open")
      }
      numbers.port = port
      numbers.handle = memory.port(port).handle.loadAcquiring()
    }
    return numbers
  }
}
