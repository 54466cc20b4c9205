// SPDX-License-Identifier: Apache-2.0
//
// The load on one queue: as many requests in flight as wanted, each followed by the next. The thread submits, polls,
// and sleeps on the queue's descriptors, as any owner of a queue does.

import ArgumentParser
import Glibc
import Platform
import Synchronization
import XbdFront

/// What a load does, by fio's names.
enum LoadPattern: String, ExpressibleByArgument, CaseIterable {
  case read
  case write
  case randread
  case randwrite

  var isWrite: Bool { self == .write || self == .randwrite }
  var isRandom: Bool { self == .randread || self == .randwrite }
}

/// A load and what came of it.
///
/// Everything but `stop`, `hasEnded` and `answers` belongs to the thread that runs it, and afterwards to whoever joined that one.
final class QueueLoad {
  let queue: BlockQueue
  private let pattern: LoadPattern
  private let byteCount: UInt64
  private let blocks: UInt64
  private let depth: Int
  private let until: UInt64
  private var generator: UInt64
  private var position: UInt64 = 0
  private var inFlight = 0
  private var now: UInt64 = 0
  /// When this turn's first answer was seen, in nanoseconds; 0 before it.
  ///
  /// One look at the clock for all of them: in a PV domU it is a system call, and the hypervisor may emulate the counter. A
  /// turn in which a backend on this thread answers several rounds makes latencies a little short.
  private var answeredAt: UInt64 = 0
  private let mustStop = Atomic<Bool>(false)
  private let ended = Atomic<Bool>(false)
  private let answered = Atomic<UInt64>(0)

  /// Requests that were answered well, and the rest.
  private(set) var completed: UInt64 = 0
  private(set) var failed: UInt64 = 0
  /// What the first of those ended with.
  private(set) var failure: OperationStatus?
  /// From submission to completion, added up, and the longest.
  private(set) var latencySum: UInt64 = 0
  private(set) var latencyMaximum: UInt64 = 0

  init(
    _ queue: BlockQueue, pattern: LoadPattern, byteCount: UInt64, blocks: UInt64, depth: Int, seed: UInt64,
    until: UInt64
  ) {
    self.queue = queue
    self.pattern = pattern
    self.byteCount = byteCount
    self.blocks = blocks
    self.depth = depth
    self.until = until
    generator = seed &* 0x9E37_79B9_7F4A_7C15
    // Loads in order begin at places of their own.
    position = generator % blocks
  }

  /// Ends it before its time; safe from any thread.
  func stop() {
    mustStop.store(true, ordering: .relaxed)
    queue.wake()
  }

  /// Whether the thread has nothing more to do; safe from any thread.
  var hasEnded: Bool { ended.load(ordering: .acquiring) }

  /// Requests that have come back so far; safe from any thread.
  var answers: UInt64 { answered.load(ordering: .relaxed) }

  func run() {
    queue.onCompletion = { [unowned self] in finish($0) }
    now = MonotonicClock.nanoseconds()
    while true {
      let isOver = now >= until || mustStop.load(ordering: .relaxed) || failed > 0
      if isOver, inFlight == 0 { break }
      if !isOver { fill() }
      answeredAt = 0
      let progressed = queue.poll()
      if progressed { answered.store(completed &+ failed, ordering: .relaxed) }
      now = MonotonicClock.nanoseconds()
      // Requests carry the time that the queue was told last.
      _ = queue.keepTime(now)
      if !progressed, queue.armWakeup() { sleep() }
    }
    ended.store(true, ordering: .releasing)
  }

  private func fill() {
    while inFlight < depth {
      let place = nextBlock()
      let request = BlockRequest(
        command: pattern.isWrite ? .write : .read, byteOffset: place * byteCount, byteCount: byteCount)
      guard let operation = queue.begin(request, tag: now) else { return }
      queue.submit(operation)
      inFlight += 1
    }
  }

  private func nextBlock() -> UInt64 {
    if pattern.isRandom {
      // Marsaglia's xorshift64: cheap, and even enough to spread requests.
      generator ^= generator << 13
      generator ^= generator >> 7
      generator ^= generator << 17
      return generator % blocks
    }
    position += 1
    if position >= blocks { position = 0 }
    return position
  }

  private func finish(_ completion: Completion) {
    if answeredAt == 0 { answeredAt = MonotonicClock.nanoseconds() }
    let latency = answeredAt &- completion.tag
    if completion.status == .okay {
      completed += 1
    } else {
      failed += 1
      failure = failure ?? completion.status
    }
    latencySum &+= latency
    latencyMaximum = max(latencyMaximum, latency)
    queue.release(completion.operation)
    inFlight -= 1
  }

  private func sleep() {
    // A load that waits for an answer which never comes is woken by the device: by its own timeout, or when it is closed.
    let due = min(queue.keepTime(now) ?? .max, max(until, now &+ 1_000_000))
    var waits = queue.descriptors.map { pollfd(fd: $0, events: Int16(POLLIN), revents: 0) }
    _ = poll(&waits, nfds_t(waits.count), Int32(clamping: (due &- min(due, now)) / 1_000_000 + 1))
    now = MonotonicClock.nanoseconds()
  }
}
