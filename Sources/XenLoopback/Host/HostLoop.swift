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
  private var paused: [Pause] = []

  /// A descriptor that is not looked at until a moment.
  private struct Pause {
    let descriptor: Int32
    let interest: Readiness
    let token: UInt64
    let end: UInt64
  }

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
    paused.removeAll { $0.token == token }
  }

  /// Looks away from a descriptor for a while: one that stays ready and cannot be served would keep the thread busy.
  func pause(_ descriptor: Int32, _ interest: Readiness, _ token: UInt64, milliseconds: Int) {
    modify(descriptor, [], token)
    paused.removeAll { $0.token == token }
    let end = MonotonicClock.nanoseconds() + UInt64(milliseconds) * 1_000_000
    paused.append(Pause(descriptor: descriptor, interest: interest, token: token, end: end))
  }

  /// Waits once, at most until a pause ends, and serves what became ready.
  func turn(milliseconds: Int32?) {
    let count = loop.wait(milliseconds: resume(within: milliseconds))
    for index in 0..<count {
      let event = loop.event(index)
      clients[event.token]?.ready(event.readiness)
    }
  }

  /// Ends the pauses whose time has come.
  ///
  /// - Returns: how long to wait for the next one, if that is less than given.
  private func resume(within milliseconds: Int32?) -> Int32? {
    guard !paused.isEmpty else { return milliseconds }
    let now = MonotonicClock.nanoseconds()
    for pause in paused where pause.end <= now { modify(pause.descriptor, pause.interest, pause.token) }
    paused.removeAll { $0.end <= now }
    guard let next = paused.map(\.end).min() else { return milliseconds }
    let left = Int32(clamping: (next - now) / 1_000_000 + 1)
    return min(left, milliseconds ?? left)
  }
}
