// SPDX-License-Identifier: Apache-2.0
//
// The way of a slot to a worker and back. The queue's thread gives a slot away and does not touch it again before
// it comes back through `takeCompleted`; both crossings are ordered by the locks.

internal import Glibc
internal import Platform
internal import Synchronization
internal import SystemPackage

/// Slots of one queue that are with the workers, and those that came back.
final class SlowLane: @unchecked Sendable {
  private let storage: any Storage
  private let slots: PendingRequests
  private let workers: StorageWorkers
  /// Readable while slots have come back.
  let wakeUp: EventCounter
  private let monitor = Monitor()
  private let completedCount = Atomic<Int>(0)
  private let isEnding = Atomic<Bool>(false)
  // Guarded by `monitor`.
  private var completed: Table<UInt32>
  private var completedEnd = 0
  private var away = 0

  init(storage: any Storage, slots: PendingRequests, workers: StorageWorkers) throws(Errno) {
    self.storage = storage
    self.slots = slots
    self.workers = workers
    wakeUp = try EventCounter()
    completed = Table(repeating: 0, count: slots.capacity)
  }

  /// Gives a slot away.
  func submit(_ slot: UInt32) {
    monitor.withLock { away += 1 }
    workers.submit(self, slot: slot)
  }

  /// Whether slots have come back.
  @inline(__always)
  var hasCompleted: Bool { completedCount.load(ordering: .relaxed) != 0 }

  /// Takes the slots that have come back.
  ///
  /// - Parameter taken: gets them; has room for all slots of the queue.
  /// - Returns: how many there are.
  func takeCompleted(into taken: inout Table<UInt32>) -> Int {
    monitor.withLock {
      // Inside the lock, as the signal is: one that came after this would have nobody left to take it back.
      wakeUp.drain()
      let count = completedEnd
      for position in 0..<count { taken[position] = completed[position] }
      completedEnd = 0
      completedCount.store(0, ordering: .relaxed)
      return count
    }
  }

  /// Does a slot's work; called by a worker.
  func perform(_ slot: UInt32) {
    let outcome = work(slot)
    slots[slot].outcome = outcome
    monitor.withLock {
      completed[completedEnd] = slot
      completedEnd += 1
      away -= 1
      completedCount.store(completedEnd, ordering: .relaxed)
      // Inside the lock: once `away` is 0 the queue may be taken down.
      if completedEnd == 1 { wakeUp.signal() }
      if away == 0 { monitor.signalAll() }
    }
  }

  /// Waits until no worker touches a slot of this queue any more; what was not begun is dropped.
  func drain() {
    isEnding.store(true, ordering: .relaxed)
    let cancelled = workers.cancel(self)
    monitor.withLock {
      away -= cancelled
      while away > 0 { monitor.wait() }
    }
  }

  private func work(_ slot: UInt32) -> StorageOutcome {
    var left = slots[slot].fault.delay
    while left > 0, !isEnding.load(ordering: .relaxed) {
      let step = min(left, 20)
      usleep(step * 1000)
      left -= step
    }
    if slots[slot].flushBefore {
      let outcome = flush()
      if outcome != .done { return outcome }
    }
    if slots[slot].hasBody {
      let outcome = storage.perform(&slots[slot].work)
      if outcome != .done { return outcome }
    }
    return slots[slot].flushAfter ? flush() : .done
  }

  private func flush() -> StorageOutcome {
    var request = StorageRequest(.flush, byteOffset: 0, byteCount: 0)
    return storage.perform(&request)
  }
}
