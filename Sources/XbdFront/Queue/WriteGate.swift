// SPDX-License-Identifier: Apache-2.0
//
// Unaligned writes read a sector, change part of it and write it back. A write to the other part of that sector
// in between would be lost. So an unaligned write runs alone among the writes of the whole device: it waits for
// those in flight, and those that come wait for it. Aligned writes pay two atomic additions.

internal import Synchronization

/// What the queues of one device share so that unaligned writes run alone.
public final class WriteGate: Sendable {
  private let writers = Atomic<Int>(0)
  /// 0 when nobody runs alone, otherwise 1 + the queue that does.
  private let owner = Atomic<Int>(0)
  /// A bit for each queue in which something waits here.
  private let waiting = Atomic<UInt64>(0)
  /// 0, or 1 + the queue that ran alone last.
  private let last = Atomic<Int>(0)
  private let wakeups: Mutex<[@Sendable () -> Void]> = Mutex([])

  /// A gate for a new device.
  public init() {}

  /// Registers how to make a queue look at its parked operations again.
  func register(_ wake: @escaping @Sendable () -> Void) {
    wakeups.withLock { $0.append(wake) }
  }

  /// Lets an aligned write begin, unless one runs alone.
  ///
  /// The addition comes before the look at `owner`, and `enterAlone` stores `owner` before it looks at the count:
  /// with sequential consistency at least one of the two sees the other.
  func enter() -> Bool {
    // Without this look a queue that waits here would wake itself, and everybody else, with every try.
    if owner.load(ordering: .relaxed) != 0 { return false }
    writers.add(1, ordering: .sequentiallyConsistent)
    if owner.load(ordering: .sequentiallyConsistent) == 0 { return true }
    leave()
    return false
  }

  /// An aligned write has ended.
  func leave() {
    let left = writers.subtract(1, ordering: .sequentiallyConsistent).newValue
    if left == 0, owner.load(ordering: .sequentiallyConsistent) != 0 { wakeAll() }
  }

  /// Lets an unaligned write begin when no other write is in flight; otherwise holds new ones back until it can.
  ///
  /// - Parameter queue: who asks; asks again when woken, until it gets true.
  func enterAlone(queue: Int) -> Bool {
    // It is the others' turn: this queue would be back before they have woken up.
    if last.load(ordering: .relaxed) == queue + 1,
      waiting.load(ordering: .sequentiallyConsistent) & ~Self.bit(queue) != 0,
      owner.load(ordering: .relaxed) != queue + 1
    {
      return false
    }
    let (exchanged, original) = owner.compareExchange(
      expected: 0, desired: queue + 1, ordering: .sequentiallyConsistent)
    guard exchanged || original == queue + 1 else { return false }
    return writers.load(ordering: .sequentiallyConsistent) == 0
  }

  /// The write that ran alone has ended, or gave up waiting for its turn.
  func leaveAlone(queue: Int) {
    let (exchanged, _) = owner.compareExchange(
      expected: queue + 1, desired: 0, ordering: .sequentiallyConsistent)
    guard exchanged else { return }
    last.store(queue + 1, ordering: .relaxed)
    wakeAll()
  }

  /// Something waits here now, or nothing any more, in a queue.
  func setWaiting(_ isWaiting: Bool, queue: Int) {
    if isWaiting {
      waiting.bitwiseOr(Self.bit(queue), ordering: .sequentiallyConsistent)
    } else {
      let left = waiting.bitwiseAnd(~Self.bit(queue), ordering: .sequentiallyConsistent).newValue
      // Who ran alone last may again.
      if left != 0 { wakeAll() }
    }
  }

  /// Queues that share one are not fair to each other.
  private static func bit(_ queue: Int) -> UInt64 { 1 << UInt64(queue & 63) }

  private func wakeAll() {
    wakeups.withLock { for wake in $0 { wake() } }
  }
}
