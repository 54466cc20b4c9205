// SPDX-License-Identifier: Apache-2.0
//
// When something runs out: ring slots, pages, operations, the domain's grants.

import Blkif
import Testing
import Xen

@testable import XbdFront

@Suite struct BackpressureTests {
  @Test(arguments: [true, false])
  func manyMoreRequestsThanTheRingHoldsAllComeThrough(isInline: Bool) throws {
    let harness = try QueueHarness(QueueSetup(maxSegments: 11, isInline: isInline))
    for index in 0..<500 {
      harness.submit(.write, UInt64(index) * 4096, 4096, data: Pattern.some(4096, seed: index))
    }
    harness.settle()
    #expect(harness.takeStatuses() == Array(repeating: .okay, count: 500))
    for index in 0..<500 {
      let same = sameBytes(
        Array(harness.backend.disk[index * 4096..<index * 4096 + 4096]), Pattern.some(4096, seed: index))
      #expect(same)
    }
    #expect(harness.backend.maxOutstanding <= 32)
    #expect(harness.queue.counters.waitsForRing > 0)
  }

  @Test func aFullOperationTableRefusesAndRecovers() throws {
    let harness = try QueueHarness(QueueSetup(copy: .bounce))
    var begun: [OperationID] = []
    while let operation = harness.begin(.read, 0, 512) { begun.append(operation) }
    #expect(begun.count == QueueCore.operationCapacity)
    #expect(harness.queue.counters.waitsForOperations == 1)
    harness.queue.cancel(begun.removeLast())
    #expect(harness.status(.read, 0, 512) == .okay)
    for operation in begun { harness.queue.cancel(operation) }
    #expect(harness.status(.read, 0, 512) == .okay)
  }

  @Test(arguments: [true, false], [3, 4, 12, 64])
  func callersThatHoldPagesDoNotStarveOthers(isInline: Bool, poolPages: Int) throws {
    let harness = try QueueHarness(QueueSetup(poolPages: poolPages, isInline: isInline))
    // Slow callers: their reads are done, and they do not release.
    for index in 0..<200 { harness.submit(.read, UInt64(index) * 4096, 4096) }
    harness.settle()
    let slow = harness.completions
    #expect(slow.count == 200)
    harness.completions = []
    let data = Pattern.some(100_000)
    #expect(harness.write(0, data) == .okay)
    #expect(sameBytes(harness.perform(.read, 0, 100_000).data, data))
    #expect(harness.status(.writeZeroes, 100, 100) == .okay)
    for completion in slow { harness.queue.release(completion.operation) }
    #expect(harness.queue.counters.directOperations > 0)
  }

  @Test func callersThatNeverSubmitDoNotStarveOthers() throws {
    let harness = try QueueHarness(QueueSetup(poolPages: 12))
    let idle = (0..<50).compactMap { harness.begin(.write, UInt64($0) * 4096, 4096) }
    #expect(idle.count == 50)
    #expect(harness.write(0, Pattern.some(50_000)) == .okay)
    for operation in idle { harness.queue.cancel(operation) }
    #expect(harness.queue.counters.bytesWritten == 50_000)
  }

  @Test func aThreadDoesNotSleepOverPagesThatWereJustReleased() throws {
    // Nothing is in flight, a copy waits for pages, a caller releases: nobody else will wake the thread.
    let setup = QueueSetup(maxSegments: 1, poolPages: 1, limit: 1, negotiates: false)
    let harness = try QueueHarness(setup)
    harness.submit(.read, 0, 4096)
    harness.submit(.read, 4096, 4096)
    harness.settle()
    #expect(harness.takeStatuses() == [.okay, .okay])
  }

  @Test func whatACallbackSubmitsDuringTheLastTurnIsNotForgotten() throws {
    let harness = try QueueHarness(QueueSetup(isInline: false))
    var ended: [UInt64] = []
    harness.onCompletion = { completion in
      ended.append(completion.tag)
      harness.queue.release(completion.operation)
      if completion.tag == 1 { harness.submit(.read, 0, 512) }
    }
    // A read of nothing ends without the backend, in a turn in which nothing else happens.
    harness.submit(.read, 0, 0)
    harness.settle()
    #expect(ended == [1, 2])
  }

  @Test func whatIsSubmittedAfterThePollKeepsTheThreadAwake() throws {
    let harness = try QueueHarness(QueueSetup(isInline: false))
    harness.queue.poll()
    harness.submit(.read, 0, 512)
    let maySleep = harness.queue.armWakeup()
    #expect(!maySleep)
  }

  @Test func aHugeWriteOfZeroesDoesNotBlockReads() throws {
    var setup = QueueSetup(maxSegments: 32, poolPages: 960, isInline: false)
    setup.diskBytes = 16 << 20
    let harness = try QueueHarness(setup)
    harness.backend.judge = { _ in .hold }
    harness.submit(.writeZeroes, 0, 16 << 20)
    harness.settle()
    harness.onCompletion = { completion in
      harness.completions.append(completion)
    }
    var read: OperationID?
    for _ in 0..<60 {
      if read == nil {
        read = harness.begin(.read, 4096, 4096)
        if let read { harness.queue.submit(read) }
      }
      harness.backend.answerHeld([0])
      harness.settle()
      if !harness.completions.isEmpty { break }
    }
    #expect(harness.completions.first?.operation == read)
    // Let it come to its end.
    for _ in 0..<10_000 where harness.completions.count < 2 {
      harness.backend.answerHeld()
      harness.settle()
    }
    #expect(harness.takeStatuses() == [.okay, .okay])
  }

  @Test(arguments: GrantMode.allCases, CopyMode.allCases)
  func aDomainLimitBelowThePoolMakesItSmallerAndSaysSo(grants: GrantMode, copy: CopyMode) throws {
    let harness = try QueueHarness(
      QueueSetup(copy: copy, grants: grants, maxSegments: 32, poolPages: 960, limit: 20))
    for index in 0..<50 {
      let data = Pattern.some(200_000, seed: index)
      #expect(harness.write(0, data) == .okay)
      #expect(sameBytes(harness.perform(.read, 0, 200_000).data, data))
    }
    let counters = harness.queue.counters
    #expect(counters.poolBound <= 20 && counters.poolBound >= 5)
    let message = try #require(harness.reports.messages.first)
    #expect(message.contains("limit of 20 pages"))
    #expect(harness.sharing.liveCount <= 20)
  }

  @Test func cancelChangesNothing() throws {
    let harness = try QueueHarness()
    for (offset, count) in [(0, 4096), (3, 5), (512, 100_000)] as [(UInt64, Int)] {
      let operation = try #require(harness.begin(.write, offset, UInt64(count)))
      harness.fill(operation, Pattern.some(count))
      harness.queue.cancel(operation)
      harness.queue.cancel(operation)
      harness.queue.submit(operation)
    }
    harness.settle()
    #expect(harness.completions.isEmpty)
    #expect(harness.backend.log.isEmpty)
    let untouched = harness.diskBytes.allSatisfy { $0 == 0 }
    #expect(untouched)
    #expect(harness.queue.counters.writes == 0)
  }

  @Test func staleOperationNumbersAreIgnored() throws {
    let harness = try QueueHarness()
    let old = try #require(harness.submit(.read, 0, 4096))
    harness.settle()
    harness.queue.release(old)
    let new = try #require(harness.submit(.read, 0, 4096))
    harness.settle()
    harness.queue.release(old)
    harness.queue.cancel(old)
    harness.queue.submit(old)
    #expect(harness.memory(old).isEmpty)
    #expect(harness.contents(new).count == 4096)
    let rubbish = OperationID(rawValue: .max)
    harness.queue.release(rubbish)
    harness.queue.submit(rubbish)
    #expect(harness.memory(rubbish).isEmpty)
  }

  @Test func rangesAtTheEdges() throws {
    let harness = try QueueHarness()
    let size = UInt64(harness.setup.diskBytes)
    #expect(harness.status(.read, size, 0) == .okay)
    #expect(harness.status(.write, 0, 0) == .okay)
    #expect(harness.status(.read, size - 1, 1) == .okay)
    #expect(harness.status(.read, size - 1, 2) == .outOfRange)
    #expect(harness.status(.read, size + 1, 0) == .outOfRange)
    #expect(harness.status(.read, .max, 2) == .outOfRange)
    #expect(harness.status(.read, 1, .max) == .outOfRange)
    #expect(harness.status(.writeZeroes, 1, .max) == .outOfRange)
    #expect(harness.status(.write, size - 1, 1) == .okay)
    #expect(harness.status(.writeZeroes, 0, size) == .okay)
    #expect(harness.backend.complaints.isEmpty)
  }

  @Test(arguments: [11, 12, 32, 33, 64], CopyMode.allCases)
  func requestsAtTheEdgeOfTheSegmentsAreCutExactly(pages: Int, copy: CopyMode) throws {
    for segments in [1, 11, 12, 32] {
      let harness = try QueueHarness(QueueSetup(copy: copy, maxSegments: segments, poolPages: 960))
      let data = Pattern.some(pages * 4096)
      #expect(harness.write(4096, data) == .okay)
      #expect(harness.backend.log.count == (pages + segments - 1) / segments)
      #expect(harness.backend.log.allSatisfy { $0.isIndirect == ($0.segments.count > 11) })
      #expect(sameBytes(Array(harness.diskBytes[4096..<4096 + pages * 4096]), data))
    }
  }

  /// The pool was meant to have 64 pages, and the domain has 4: whoever waits behind gives up its own.
  @Test(arguments: [GrantMode.persistent, .perRequest], [true, false])
  func regression_operationsThatWaitDoNotKeepEveryPageFromTheOneInFront(grants: GrantMode, isInline: Bool)
    throws
  {
    let harness = try QueueHarness(
      QueueSetup(grants: grants, poolPages: 64, isInline: isInline, limit: 4))
    let first = try #require(harness.begin(.writeZeroes, 0, 4096))
    harness.queue.submit(first)
    for index in 1...8 as ClosedRange<UInt64> { harness.submit(.read, index * 4096, 4096) }
    harness.settle()
    #expect(harness.takeStatuses() == [OperationStatus](repeating: .okay, count: 9))
    #expect(harness.queue.unfinishedOperations == 0)
  }

  @Test(arguments: [GrantMode.persistent, .perRequest])
  func regression_anUnalignedWriteFindsAPageWithWritesBehindIt(grants: GrantMode) throws {
    let harness = try QueueHarness(
      QueueSetup(grants: grants, sectorSize: 4096, poolPages: 64, limit: 4))
    let data = Pattern.some(4096, seed: 5)
    let first = try #require(harness.begin(.write, 1, 1))
    harness.fill(first, [9])
    harness.queue.submit(first)
    for index in 1...8 as ClosedRange<UInt64> { harness.submit(.write, index * 4096, 4096, data: data) }
    harness.settle()
    #expect(harness.takeStatuses() == [OperationStatus](repeating: .okay, count: 9))
    #expect(harness.backend.disk[1] == 9)
    for index in 1...8 {
      #expect(sameBytes(Array(harness.backend.disk[index * 4096..<(index + 1) * 4096]), data))
    }
  }

  /// The pool was meant to have 64 pages, and the domain has 4: callers whose payload is not there yet must not hold the last.
  @Test(arguments: [true, false])
  func callersThatHoldOperationsLeaveAPageOfADomainThatHasFew(isInline: Bool) throws {
    let harness = try QueueHarness(QueueSetup(poolPages: 64, isInline: isInline, limit: 4))
    let held = (1...8).compactMap { harness.begin(.read, UInt64($0) * 4096, 4096) }
    #expect(held.count == 8)
    harness.submit(.writeZeroes, 0, 4096)
    harness.settle()
    #expect(harness.takeStatuses() == [.okay])
    for operation in held { harness.queue.submit(operation) }
    harness.settle()
    #expect(harness.takeStatuses() == [OperationStatus](repeating: .okay, count: 8))
    #expect(harness.queue.unfinishedOperations == 0)
  }

  @Test func anUnalignedWriteFindsAPageBesideWritesThatAreHeld() throws {
    let harness = try QueueHarness(QueueSetup(sectorSize: 4096, poolPages: 64, limit: 4))
    let data = Pattern.some(4096, seed: 5)
    let held = (1...8).compactMap { harness.begin(.write, UInt64($0) * 4096, 4096) }
    #expect(held.count == 8)
    harness.submit(.write, 1, 1, data: [9])
    harness.settle()
    #expect(harness.takeStatuses() == [.okay])
    for operation in held {
      harness.fill(operation, data)
      harness.queue.submit(operation)
    }
    harness.settle()
    #expect(harness.takeStatuses() == [OperationStatus](repeating: .okay, count: 8))
    #expect(harness.backend.disk[1] == 9)
    for index in 1...8 {
      #expect(sameBytes(Array(harness.backend.disk[index * 4096..<(index + 1) * 4096]), data))
    }
  }

  @Test func regression_copiesAreCutToWhatThePoolHasBecome() throws {
    let harness = try QueueHarness(
      QueueSetup(copy: .bounce, maxSegments: 256, poolPages: 64, isInline: false, negotiates: false))
    harness.backend.judge = { _ in .hold }
    harness.submit(.write, 0, 1 << 20, data: Pattern.some(1 << 20))
    harness.settle()
    #expect(harness.backend.held.count >= 2)
  }
}
