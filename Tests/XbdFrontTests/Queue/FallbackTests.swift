// SPDX-License-Identifier: Apache-2.0
//
// What a queue does when the backend refuses or fails something, and durability in its order.

import TestSupport
import Blkif
import Testing

@testable import XbdFront

@Suite struct FallbackTests {
  @Test func aDurableWriteIsAWriteAndThenAFlush() throws {
    for command in [BlockRequest.Command.write, .writeZeroes, .discard] {
      let harness = try QueueHarness(
        QueueSetup(discard: DiscardLimits(granularity: 512, alignment: 0, secure: false)))
      #expect(harness.status(command, 0, 100_000 / 512 * 512, fua: true) == .okay)
      let operations = harness.backend.log.map(\.operation)
      #expect(operations.last == 3)
      #expect(!operations.dropLast().contains(3))
      #expect(operations.count >= 2)
    }
  }

  @Test func theFlushWaitsUntilEveryPartIsAnswered() throws {
    let harness = try QueueHarness(QueueSetup(maxSegments: 11, isInline: false))
    harness.backend.judge = { _ in .hold }
    harness.submit(.write, 0, 200_000 / 512 * 512, fua: true)
    harness.settle()
    while harness.backend.held.count > 1 {
      #expect(!harness.backend.log.contains { $0.operation == 3 })
      harness.backend.answerHeld([harness.backend.held.count - 1])
      harness.settle()
    }
    harness.backend.answerHeld()
    harness.settle()
    #expect(harness.backend.held.map(\.operation) == [3])
    #expect(harness.completions.isEmpty)
    harness.backend.answerHeld()
    harness.settle()
    #expect(harness.takeStatuses() == [.okay])
  }

  @Test func aFailedDurableWriteIsNotFlushed() throws {
    let harness = try QueueHarness()
    harness.backend.judge = { $0.operation == 1 ? .refuse(-1) : .serve }
    #expect(harness.status(.write, 0, 4096, fua: true) == .ioError)
    #expect(harness.backend.log.map(\.operation) == [1])
  }

  @Test func theLadderGoesFromFlushToBarrierToNothing() throws {
    let harness = try QueueHarness(QueueSetup(hasBarrier: true))
    #expect(harness.status(.flush) == .okay)
    harness.backend.judge = { $0.operation == 3 ? .refuse(-2) : .serve }
    #expect(harness.status(.flush) == .okay)
    #expect(harness.status(.flush) == .okay)
    #expect(harness.backend.log.map(\.operation) == [3, 3, 2, 2])
    #expect(harness.queue.parameters.flush == .barrier)
    harness.backend.judge = { $0.operation == 2 ? .refuse(-2) : .serve }
    #expect(harness.status(.flush) == .notSupported)
    #expect(harness.queue.parameters.flush == .none)
    #expect(harness.status(.flush) == .notSupported)
    #expect(harness.status(.write, 0, 512, fua: true) == .notSupported)
    #expect(harness.status(.write, 0, 512) == .okay)
    #expect(harness.backend.log.map(\.operation) == [3, 3, 2, 2, 2, 1])
    #expect(harness.queue.counters.unsupportedResponses == 2)
  }

  @Test func manyFlushesRefusedAtOnceAllFindTheNextBest() throws {
    let harness = try QueueHarness(QueueSetup(isInline: false, hasBarrier: true))
    harness.backend.judge = { $0.operation == 3 ? .refuse(-2) : .serve }
    for _ in 0..<20 { harness.submit(.flush) }
    harness.settle()
    #expect(harness.takeStatuses() == Array(repeating: .okay, count: 20))
  }

  @Test(arguments: [(FlushMethod.flushCache, [3]), (.barrier, [2]), (.none, [])] as [(FlushMethod, [UInt8])])
  func eachWayToFlush(method: FlushMethod, operations: [UInt8]) throws {
    let harness = try QueueHarness(QueueSetup(flush: method))
    #expect(harness.status(.flush) == (method == .none ? .notSupported : .okay))
    #expect(harness.status(.write, 0, 512, fua: true) == (method == .none ? .notSupported : .okay))
    #expect(harness.backend.log.map(\.operation).filter { $0 != 1 } == operations + operations)
  }

  @Test(arguments: CopyMode.allCases)
  func refusedIndirectRequestsBecomeDirectOnes(copy: CopyMode) throws {
    let harness = try QueueHarness(QueueSetup(copy: copy, maxSegments: 32))
    harness.backend.judge = { $0.isIndirect ? .refuse(-2) : .serve }
    let data = Pattern.some(500_000)
    #expect(harness.write(300, data) == .okay)
    #expect(sameBytes(harness.perform(.read, 300, 500_000).data, data))
    #expect(harness.queue.parameters.maxSegments == 11)
    harness.backend.log = []
    #expect(harness.status(.read, 0, 200_000) == .okay)
    #expect(harness.backend.log.allSatisfy { !$0.isIndirect })
    #expect(harness.backend.complaints.isEmpty)
  }

  @Test func aRefusedDiscardIsNotTriedAgain() throws {
    let harness = try QueueHarness(
      QueueSetup(discard: DiscardLimits(granularity: 512, alignment: 0, secure: false)))
    harness.backend.judge = { $0.operation == 5 ? .refuse(-2) : .serve }
    #expect(harness.status(.discard, 0, 4096) == .notSupported)
    #expect(harness.status(.discard, 0, 4096) == .notSupported)
    #expect(harness.backend.log.count == 1)
  }

  @Test func aRefusedWriteIsNotSupported() throws {
    let harness = try QueueHarness()
    harness.backend.judge = { $0.operation == 1 ? .refuse(-2) : .serve }
    #expect(harness.status(.write, 0, 4096) == .notSupported)
  }

  @Test(arguments: CopyMode.allCases, [0, 3, 9])
  func oneFailedPartFailsTheWholeOnceAfterAllHaveEnded(copy: CopyMode, part: Int) throws {
    let harness = try QueueHarness(QueueSetup(copy: copy, maxSegments: 11, isInline: false))
    harness.backend.judge = { _ in .hold }
    for command in [BlockRequest.Command.read, .write] {
      harness.submit(command, 0, 440 * 1024)
      harness.settle()
      #expect(harness.backend.held.count == 10)
      let failing = harness.backend.held[part].id
      while !harness.backend.held.isEmpty {
        #expect(harness.completions.isEmpty)
        let request = harness.backend.held[0]
        if request.id == failing {
          harness.backend.held.removeFirst()
          harness.backend.answer(request, -1)
          harness.backend.publish()
        } else {
          harness.backend.answerHeld([0])
        }
        harness.settle()
      }
      let operation = harness.completions.first?.operation
      #expect(operation.map { harness.memory($0).isEmpty } == true)
      #expect(harness.takeStatuses() == [.ioError])
    }
    #expect(harness.queue.unfinishedOperations == 0)
  }

  @Test(arguments: CopyMode.allCases)
  func aFailedReadGivesNoBytes(copy: CopyMode) throws {
    let harness = try QueueHarness(QueueSetup(copy: copy))
    #expect(harness.write(0, Pattern.some(4096)) == .okay)
    harness.backend.judge = { _ in .refuse(-1) }
    let (status, data) = harness.perform(.read, 0, 4096)
    #expect(status == .ioError)
    #expect(data.isEmpty)
  }

  @Test(arguments: [(0, 1), (1, 510), (511, 1), (511, 2), (100, 512), (0, 513), (1, 5000), (512, 700)])
  func writesOfZeroesReadOnlyTheEdges(offset: Int, count: Int) throws {
    let harness = try QueueHarness()
    let before = Pattern.some(16384)
    _ = harness.backend.disk.update(fromContentsOf: before)
    #expect(harness.status(.writeZeroes, UInt64(offset), UInt64(count)) == .okay)
    var expected = before
    expected.replaceSubrange(offset..<offset + count, with: repeatElement(0, count: count))
    #expect(sameBytes(Array(harness.diskBytes[..<16384]), expected))
    let reads = harness.backend.log.filter { $0.operation == 0 }
    #expect(reads.count <= 2)
    #expect(reads.allSatisfy { $0.byteCount == 512 })
    let partial = (offset % 512 != 0 ? 1 : 0) + ((offset + count) % 512 != 0 ? 1 : 0)
    #expect(reads.count <= partial)
  }

  @Test(arguments: [512, 4096, 8192, 65536] as [UInt64], [0, 512, 4096] as [UInt64])
  func discardsCoverWholeExtentsOnly(granularity: UInt64, alignment: UInt64) throws {
    let limits = DiscardLimits(granularity: granularity, alignment: alignment % granularity, secure: false)
    let harness = try QueueHarness(QueueSetup(diskBytes: 300_032, discard: limits))
    let size = 300_032
    var random = SeededGenerator(seed: granularity ^ alignment)
    for index in 0..<60 {
      let before = Pattern.some(size, seed: index)
      _ = harness.backend.disk.update(fromContentsOf: before)
      let offset = random.below(size)
      let count = index % 10 == 0 ? size - offset : random.below(size - offset + 1)
      #expect(harness.status(.discard, UInt64(offset), UInt64(count)) == .okay)
      var expected = before
      var extent = Int(limits.alignment)
      while extent < size {
        let end = min(extent + Int(granularity), size)
        if offset <= extent, end <= offset + count {
          expected.replaceSubrange(extent..<end, with: repeatElement(0xDD, count: end - extent))
        }
        extent = end
      }
      #expect(sameBytes(harness.diskBytes, expected), "discard of \(count) at \(offset)")
    }
    #expect(harness.backend.complaints.isEmpty)
  }

  @Test func aSecureDiscardSaysSoAndIsRefusedWhereItCannotBe() throws {
    for secure in [true, false] {
      let limits = DiscardLimits(granularity: 4096, alignment: 0, secure: secure)
      let harness = try QueueHarness(QueueSetup(discard: limits))
      var request = BlockRequest(command: .discard, byteOffset: 0, byteCount: 8192)
      #expect(harness.status(.discard, 0, 8192) == .okay)
      #expect(harness.backend.log.last?.slot[1] == 0)
      request.isSecure = true
      let operation = try #require(harness.queue.begin(request, tag: 1))
      harness.queue.submit(operation)
      harness.settle()
      #expect(harness.takeStatuses() == [secure ? .okay : .notSupported])
      #expect(harness.backend.log.count == (secure ? 2 : 1))
      if secure { #expect(harness.backend.log.last?.slot[1] == 1) }
    }
  }

  @Test func requestsMayBeCountedInTheLogicalSector() throws {
    let limits = DiscardLimits(granularity: 8192, alignment: 0, secure: false)
    let harness = try QueueHarness(QueueSetup(sectorSize: 4096, discard: limits, sectorShift: 12))
    // What it would do with these is another matter.
    harness.backend.judge = { _ in .refuse(0) }
    #expect(harness.status(.read, 40_960, 8192) == .okay)
    #expect(harness.backend.log.last?.sector == 10)
    #expect(harness.backend.log.last?.byteCount == 8192)
    #expect(harness.status(.discard, 40_960, 8192) == .okay)
    #expect(harness.backend.log.last?.sector == 10)
    #expect(harness.backend.log.last?.discardSectors == 2)
  }

  @Test func aReadOnlyDeviceRefusesWritesByItself() throws {
    let harness = try QueueHarness(QueueSetup(isReadOnly: true))
    #expect(harness.status(.write, 0, 512) == .readOnly)
    #expect(harness.status(.writeZeroes, 0, 512) == .readOnly)
    #expect(harness.status(.discard, 0, 512) == .readOnly)
    #expect(harness.status(.read, 0, 512) == .okay)
    #expect(harness.backend.log.map(\.operation) == [0])
  }
}
