// SPDX-License-Identifier: Apache-2.0

internal import Synchronization

/// The workers of a server that still need their targets.
///
/// A target may work through another one: a queue that has no ring of its own sends its operations to one that has. So a
/// worker looks after its target until the last of them is done.
final class WorkerGroup: Sendable {
  private let busy = Atomic(0)

  /// Whether somebody is not done.
  var isBusy: Bool { busy.load(ordering: .acquiring) > 0 }

  /// One more begins.
  func enter() { busy.add(1, ordering: .relaxed) }

  /// One is done.
  func leave() { busy.subtract(1, ordering: .releasing) }
}
