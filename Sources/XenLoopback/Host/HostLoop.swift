// SPDX-License-Identifier: Apache-2.0
//
// The host's one wait: who is told when a descriptor is ready. Everything a host does runs on this loop's thread.

internal import Platform
internal import SystemPackage

/// Something with a descriptor in the loop.
protocol LoopClient: AnyObject {
  /// The descriptor is ready; called on the loop's thread.
  func ready(_ readiness: Readiness)
}

/// An event loop that calls objects.
///
/// Used by one thread.
final class HostLoop {
  private let loop: EventLoop
  private var clients: [UInt64: any LoopClient] = [:]
  private var lastToken: UInt64 = 0

  init() throws(Errno) {
    loop = try EventLoop(capacity: 64)
  }

  /// Begins to watch a descriptor; the client is kept until `remove`.
  ///
  /// - Returns: the number to change or end it with.
  func add(_ descriptor: Int32, _ interest: Readiness, _ client: any LoopClient) throws(Errno) -> UInt64 {
    // Tokens are never used twice: an event of this turn for a descriptor closed in this turn finds nobody.
    lastToken += 1
    try loop.add(descriptor, interest, token: lastToken)
    clients[lastToken] = client
    return lastToken
  }

  func modify(_ descriptor: Int32, _ interest: Readiness, _ token: UInt64) {
    try? loop.modify(descriptor, interest, token: token)
  }

  func remove(_ descriptor: Int32, _ token: UInt64) {
    loop.remove(descriptor)
    clients[token] = nil
  }

  /// Waits once and serves what became ready.
  func turn(milliseconds: Int32?) {
    let count = loop.wait(milliseconds: milliseconds)
    for index in 0..<count {
      let event = loop.event(index)
      clients[event.token]?.ready(event.readiness)
    }
  }
}
