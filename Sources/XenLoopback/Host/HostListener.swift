// SPDX-License-Identifier: Apache-2.0
//
// A listening socket in the host's loop, of the control socket or of a domain's xenstore.

internal import Platform
internal import SystemPackage

/// Accepts connections and hands them on.
///
/// When there is no descriptor for one, the connections wait in the kernel until a moment later: the socket stays
/// ready meanwhile, and looking at it again at once would help nobody.
final class HostListener: LoopClient {
  /// How long connections wait when none can be accepted.
  private static let pauseMilliseconds = 100

  private let socket: OwnedDescriptor
  private let loop: HostLoop
  private let accepted: (consuming OwnedDescriptor) -> Void
  private var token: UInt64 = 0

  /// Begins to accept.
  ///
  /// - Parameters:
  ///   - socket: listens and does not block.
  ///   - accepted: called on the loop's thread.
  init(
    _ socket: consuming OwnedDescriptor, loop: HostLoop,
    accepted: @escaping (consuming OwnedDescriptor) -> Void
  ) throws(Errno) {
    self.socket = socket
    self.loop = loop
    self.accepted = accepted
    token = try loop.add(self.socket.raw, .readable, self)
  }

  func ready(_ readiness: Readiness) {
    do throws(Errno) {
      while let raw = try UnixSocket.accept(socket.raw) { accepted(OwnedDescriptor(raw)) }
    } catch {
      loop.pause(socket.raw, .readable, token, milliseconds: Self.pauseMilliseconds)
    }
  }

  func close() {
    loop.remove(socket.raw, token)
  }
}
