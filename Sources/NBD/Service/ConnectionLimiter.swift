// SPDX-License-Identifier: Apache-2.0

internal import Synchronization

/// Counts the connections of a server over all its workers, against a limit.
final class ConnectionLimiter: Sendable {
  private let open = Atomic(0)
  private let limit: Int

  init(limit: Int) {
    self.limit = limit
  }

  /// Connections at this moment.
  var count: Int { open.load(ordering: .relaxed) }

  /// Counts one connection in.
  ///
  /// - Returns: false when there are as many as there may be; nothing was counted then.
  func enter() -> Bool {
    let (_, now) = open.add(1, ordering: .relaxed)
    if now <= limit { return true }
    leave()
    return false
  }

  /// Counts one connection out.
  func leave() {
    open.subtract(1, ordering: .relaxed)
  }
}
