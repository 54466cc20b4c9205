// SPDX-License-Identifier: Apache-2.0

import Blkif
import Platform
import Testing

@testable import XbdFront

@Suite struct WriteGateTests {
  @Test(arguments: [true, false])
  func neighboursInOneSectorNeverLoseAnUpdate(isInline: Bool) throws {
    let harness = try QueueHarness(QueueSetup(sectorSize: 4096, isInline: isInline))
    for index in 0..<300 {
      harness.submit(.write, UInt64(index), 1, data: [UInt8(truncatingIfNeeded: index | 1)])
    }
    harness.settle()
    #expect(harness.takeStatuses() == Array(repeating: .okay, count: 300))
    #expect(Array(harness.backend.disk[..<300]) == (0..<300).map { UInt8(truncatingIfNeeded: $0 | 1) })
    #expect(harness.queue.counters.waitsForSectors > 0)
  }

  /// Two queues of one device, a thread each, write the even and the odd bytes of the same sectors.
  @Test func twoQueuesOnTwoThreadsNeverLoseAnUpdate() throws {
    let size = 16 << 10
    let disk = UnsafeMutableBufferPointer<UInt8>.allocate(capacity: size)
    disk.initialize(repeating: 0)
    defer { disk.deallocate() }
    let gate = WriteGate()
    let done = try (0..<2).map { _ in try Handoff<Bool>() }
    var threads: [DedicatedThread] = []
    for index in 0..<2 {
      let harness = try QueueHarness(
        QueueSetup(poolPages: 12, diskBytes: size), index: index, gate: gate, disk: disk)
      harness.backend.keepsLog = false
      let box = Unchecked(value: harness)
      let finished = done[index]
      threads.append(
        try DedicatedThread(name: "queue-\(index)") {
          let harness = box.value
          var next = 0
          var ended = 0
          var active = 0
          let total = 400
          harness.onCompletion = { completion in
            ended += 1
            active -= 1
            harness.queue.release(completion.operation)
          }
          while ended < total {
            while active < 3, next < total, let operation = harness.begin(.write, UInt64(next * 2 + index), 1)
            {
              harness.fill(operation, [UInt8(truncatingIfNeeded: next | 1)])
              harness.queue.submit(operation)
              next += 1
              active += 1
            }
            if !harness.queue.poll(), harness.queue.armWakeup() { harness.sleep() }
          }
          finished.put(true)
          // Another queue may still wait for a wake-up of ours; nothing more is needed of this one.
        })
    }
    for (index, finished) in done.enumerated() {
      #expect(finished.wait(milliseconds: 60_000) == true, "queue \(index) did not finish")
    }
    for thread in threads { thread.join() }
    for index in 0..<800 { #expect(disk[index] == UInt8(truncatingIfNeeded: (index / 2) | 1)) }
  }

  @Test func alignedWritesAreNotStarvedByAStreamOfUnalignedOnes() throws {
    let harness = try QueueHarness()
    var unaligned = 0
    var alignedEnded: Int?
    harness.onCompletion = { completion in
      harness.queue.release(completion.operation)
      if completion.tag == 2 { alignedEnded = unaligned }
      guard unaligned < 100, alignedEnded == nil else { return }
      unaligned += 1
      harness.submit(.write, 3, 5, data: [1, 2, 3, 4, 5])
    }
    harness.submit(.write, 3, 5, data: [1, 2, 3, 4, 5])
    harness.submit(.write, 8192, 512, data: [UInt8](repeating: 1, count: 512))
    harness.settle()
    #expect(alignedEnded ?? 1000 <= 2)
  }

  @Test func aQueueThatWaitsForAnotherSleeps() throws {
    let gate = WriteGate()
    let first = try QueueHarness(QueueSetup(isInline: false), index: 0, gate: gate)
    let second = try QueueHarness(QueueSetup(isInline: false), index: 1, gate: gate)
    first.backend.judge = { _ in .hold }
    first.submit(.write, 3, 5, data: [1, 2, 3, 4, 5])
    first.settle()
    second.submit(.write, 0, 512, data: [UInt8](repeating: 1, count: 512))
    // settle reports a queue that never comes to rest.
    second.settle()
    #expect(second.queue.unfinishedOperations == 1)
    for _ in 0..<4 {
      first.backend.answerHeld()
      first.settle()
    }
    #expect(first.takeStatuses() == [.okay])
    // Woken through its descriptor: nobody polls it for no reason.
    #expect(second.isReadable(second.queue.descriptors))
    second.settle()
    #expect(second.takeStatuses() == [.okay])
  }

  @Test func anUnalignedWriteThatIsGivenUpLetsTheOthersThrough() throws {
    let gate = WriteGate()
    let first = try QueueHarness(QueueSetup(isInline: false), index: 0, gate: gate)
    let second = try QueueHarness(QueueSetup(isInline: false), index: 1, gate: gate)
    first.backend.judge = { _ in .hold }
    first.submit(.write, 3, 5, data: [1, 2, 3, 4, 5])
    first.settle()
    second.submit(.write, 700, 5, data: [1, 2, 3, 4, 5])
    second.submit(.write, 0, 512, data: [UInt8](repeating: 1, count: 512))
    second.settle()
    first.control.tell { $0.failEverything = .shutdown }
    first.settle()
    #expect(first.takeStatuses() == [.shutdown])
    second.settle()
    #expect(second.takeStatuses() == [.okay, .okay])
  }

  /// What the backend has yet to write has the neighbours' bytes of before in it.
  @Test func regression_anUnalignedWriteThatIsGivenUpWhileItIsWrittenLetsNobodyThrough() throws {
    let gate = WriteGate()
    let first = try QueueHarness(QueueSetup(isInline: false, keepsWrites: true), index: 0, gate: gate)
    let second = try QueueHarness(
      QueueSetup(isInline: false, keepsWrites: true), index: 1, gate: gate, disk: first.backend.disk)
    first.backend.judge = { $0.operation == 1 ? .hold : .serve }
    first.submit(.write, 3, 5, data: [1, 2, 3, 4, 5])
    first.settle()
    #expect(first.backend.held.count == 1)
    second.submit(.write, 0, 512, data: [UInt8](repeating: 9, count: 512))
    second.settle()
    first.control.tell { $0.failEverything = .ioError }
    first.settle()
    #expect(first.takeStatuses() == [.ioError])
    second.settle()
    #expect(second.takeStatuses().isEmpty && second.backend.log.isEmpty)
    // The others may still have theirs, and not have heard of it.
    first.loseBackend()
    second.settle()
    #expect(second.takeStatuses().isEmpty && second.backend.log.isEmpty)
    // Nor does one of its own come in, which would find the gate opened in its middle.
    first.submit(.write, 100, 5, data: [1, 2, 3, 4, 5])
    first.settle()
    second.settle()
    #expect(second.takeStatuses().isEmpty && second.backend.log.isEmpty)
    // The next ring comes when the backend has let go of the last: whatever comes of that has come.
    try first.reconnect()
    ReconnectTests.settle(first, second)
    first.backend.judge = { _ in .serve }
    first.backend.answerHeld()
    ReconnectTests.settle(first, second)
    #expect(first.takeStatuses() == [.okay] && second.takeStatuses() == [.okay])
    let isKept = first.backend.disk[105..<512].allSatisfy { $0 == 9 }
    #expect(isKept)
  }

  @Test func regression_unalignedWritesOfOneQueueDoNotStarveTheOthers() throws {
    let gate = WriteGate()
    let first = try QueueHarness(QueueSetup(isInline: false), index: 0, gate: gate)
    let second = try QueueHarness(QueueSetup(isInline: false), index: 1, gate: gate)
    first.backend.judge = { _ in .hold }
    for _ in 0..<10 { first.submit(.write, 3, 5, data: [1, 2, 3, 4, 5]) }
    first.settle()
    second.submit(.write, 0, 512, data: [UInt8](repeating: 1, count: 512))
    second.settle()
    var ended: Int?
    for _ in 0..<100 where first.completions.count < 10 {
      first.backend.answerHeld()
      first.settle()
      second.settle()
      if ended == nil, !second.completions.isEmpty { ended = first.completions.count }
    }
    #expect(first.completions.count == 10)
    #expect((ended ?? 10) <= 2)
    #expect(second.takeStatuses() == [.okay])
  }

}

/// Hands a value to another thread; the test sees to it that only one uses it.
struct Unchecked<Value>: @unchecked Sendable {
  let value: Value
}
