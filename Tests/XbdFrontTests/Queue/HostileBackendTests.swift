// SPDX-License-Identifier: Apache-2.0
//
// Responses that no honest backend sends (on the loopback: Tests/HostileTests). The property of all: the queue
// breaks or goes on, everything in flight ends once, nothing traps, and nobody gets another's bytes.

import TestSupport
import Blkif
import Glibc
import Platform
import Testing
import Xen

@testable import XbdFront

@Suite struct HostileBackendTests {
  /// A queue with reads in flight that the backend holds.
  static func withReads(_ count: Int, _ setup: QueueSetup = QueueSetup(isInline: false)) throws
    -> QueueHarness
  {
    let harness = try QueueHarness(setup)
    harness.backend.judge = { _ in .hold }
    for index in 0..<count { harness.submit(.read, UInt64(index) * 4096, 4096) }
    harness.settle()
    #expect(harness.backend.held.count == count)
    return harness
  }

  /// The queue is broken, and everything failed exactly once.
  static func expectBroken(
    _ harness: QueueHarness, operations: Int, sourceLocation: SourceLocation = #_sourceLocation
  ) {
    harness.channels.raise()
    harness.settle()
    let statuses = harness.takeStatuses()
    #expect(harness.queue.violation != nil, sourceLocation: sourceLocation)
    #expect(statuses.count == operations, sourceLocation: sourceLocation)
    #expect(statuses.allSatisfy { $0 == .ioError }, sourceLocation: sourceLocation)
    #expect(harness.queue.unfinishedOperations == 0, sourceLocation: sourceLocation)
    #expect(harness.reports.violations.count == 1, sourceLocation: sourceLocation)
    #expect(harness.status(.read, 0, 512) == .ioError, sourceLocation: sourceLocation)
    #expect(harness.status(.write, 0, 512) == .ioError, sourceLocation: sourceLocation)
    #expect(harness.status(.flush) == .ioError, sourceLocation: sourceLocation)
  }

  @Test(arguments: [32, 33, 1000, 0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF, 1 << 40 | 200] as [UInt64])
  func anIDBeyondTheRingBreaksIt(id: UInt64) throws {
    let harness = try Self.withReads(3)
    harness.backend.forge(at: 0, id: id, operation: 0, status: 0)
    harness.backend.setIndex(.responseProducer, 1)
    Self.expectBroken(harness, operations: 3)
  }

  @Test func anIDThatWasNeverUsedBreaksTheQueue() throws {
    let harness = try Self.withReads(3)
    for id in [9, 31, 1 << 32 | 9] as [UInt64] {
      harness.backend.forge(at: 0, id: id, operation: 0, status: 0)
    }
    harness.backend.setIndex(.responseProducer, 1)
    Self.expectBroken(harness, operations: 3)
  }

  @Test(arguments: [true, false])
  func anIDAnsweredTwiceBreaksTheQueue(inOneBatch: Bool) throws {
    let harness = try Self.withReads(3)
    let id = harness.backend.held[0].id
    harness.backend.forge(at: 0, id: id, operation: 0, status: 0)
    harness.backend.forge(at: 1, id: id, operation: 0, status: 0)
    if !inOneBatch {
      harness.backend.setIndex(.responseProducer, 1)
      harness.channels.raise()
      harness.settle()
      #expect(harness.takeStatuses() == [.okay])
    }
    harness.backend.setIndex(.responseProducer, 2)
    harness.channels.raise()
    harness.settle()
    let expected: [OperationStatus] = (inOneBatch ? [.okay] : []) + [.ioError, .ioError]
    #expect(harness.takeStatuses() == expected)
    #expect(harness.queue.violation == .notInFlight(id))
  }

  @Test func theWholeOfTheIDIsCompared() throws {
    let harness = try Self.withReads(2)
    harness.backend.forge(at: 0, id: harness.backend.held[0].id ^ 1 << 63, operation: 0, status: 0)
    harness.backend.setIndex(.responseProducer, 1)
    Self.expectBroken(harness, operations: 2)
  }

  @Test func anIDOfAnEarlierUseOfTheSlotIsStale() throws {
    let harness = try QueueHarness(QueueSetup(isInline: false))
    #expect(harness.status(.read, 0, 512) == .okay)
    let stale = harness.backend.log[0].id
    harness.backend.judge = { _ in .hold }
    harness.submit(.read, 0, 512)
    harness.settle()
    harness.backend.forge(at: 1, id: stale, operation: 0, status: 0)
    harness.backend.setIndex(.responseProducer, 2)
    Self.expectBroken(harness, operations: 1)
  }

  @Test(arguments: [1, 2, 3, 4, 5, 6, 7, 255] as [UInt8])
  func anotherOperationThanTheRequestsBreaksTheQueue(operation: UInt8) throws {
    let harness = try Self.withReads(1)
    harness.backend.forge(at: 0, id: harness.backend.held[0].id, operation: operation, status: 0)
    harness.backend.setIndex(.responseProducer, 1)
    Self.expectBroken(harness, operations: 1)
    #expect(harness.queue.violation == .wrongOperation(expected: 0, got: operation))
  }

  @Test(arguments: [true, false])
  func anIndirectRequestMayBeAnsweredWithEitherOperation(outer: Bool) throws {
    let harness = try QueueHarness(QueueSetup(copy: .bounce))
    harness.backend.answersOuterOperation = outer
    let data = Pattern.some(100_000)
    #expect(harness.write(0, data) == .okay)
    let (status, read) = harness.perform(.read, 0, 100_000)
    #expect(status == .okay)
    #expect(sameBytes(read, data))
    #expect((harness.queue.counters.outerOperationResponses > 0) == outer)
    #expect(harness.queue.counters.indirectRequests > 0)
  }

  @Test(
    arguments: [
      (0, .okay), (-1, .ioError), (-2, .notSupported), (1, .ioError), (2, .ioError),
      (32767, .ioError), (-32768, .ioError), (-3, .ioError),
    ] as [(Int16, OperationStatus)])
  func anUnknownStatusIsAnError(wire: Int16, status: OperationStatus) throws {
    let harness = try QueueHarness()
    harness.backend.judge = { _ in .refuse(wire) }
    let (ended, data) = harness.perform(.read, 0, 8192)
    #expect(ended == status)
    #expect(data.count == (wire == 0 ? 8192 : 0))
    #expect(harness.queue.violation == nil)
  }

  @Test(
    arguments: [4, 5, 32, 33, 1 << 31, UInt32.max, UInt32.max - 1] as [UInt32],
    [0, UInt32.max - 1] as [UInt32])
  func aProducerThatMakesNoSenseBreaksTheQueue(jump: UInt32, start: UInt32) throws {
    let harness = try Self.withReads(3, QueueSetup(isInline: false, start: start))
    harness.backend.setIndex(.responseProducer, start &+ jump)
    Self.expectBroken(harness, operations: 3)
  }

  @Test func indicesWrapWithoutHarm() throws {
    let harness = try QueueHarness(QueueSetup(isInline: false, start: UInt32.max - 5))
    for index in 0..<100 {
      let data = Pattern.some(4096, seed: index)
      #expect(harness.write(UInt64(index) * 4096, data) == .okay)
      #expect(harness.perform(.read, UInt64(index) * 4096, 4096).data == data)
    }
  }

  @Test func paddingInAResponseIsIgnored() throws {
    let harness = try Self.withReads(1)
    // forge fills the slot with rubbish around the fields
    harness.backend.forge(at: 0, id: harness.backend.held[0].id, operation: 0, status: 0)
    harness.backend.setIndex(.responseProducer, 1)
    harness.channels.raise()
    harness.settle()
    #expect(harness.takeStatuses() == [.okay])
  }

  @Test func aBackendThatNeverAnswersIsGivenUpAndItsPagesAreNotUsedAgain() throws {
    let harness = try Self.withReads(3)
    let pages = harness.sharing.liveCount
    harness.control.tell {
      $0.refusal = .shutdown; $0.failEverything = .shutdown
    }
    harness.settle()
    #expect(harness.takeStatuses() == [.shutdown, .shutdown, .shutdown])
    // The backend comes to life after all: nobody looks.
    harness.backend.answerHeld()
    harness.settle()
    #expect(harness.takeStatuses().isEmpty)
    #expect(harness.status(.read, 0, 4096) == .shutdown)
    #expect(harness.sharing.liveCount == pages)
    #expect(harness.queue.violation == nil)
  }

  @Test func aLateAnswerNeverReachesTheNextUserOfItsPlace() throws {
    // Another queue of the device broke: this one is told to fail everything, its backend knows nothing of it.
    let harness = try Self.withReads(3, QueueSetup(copy: .bounce, isInline: false))
    harness.control.tell { $0.failEverything = .ioError }
    harness.settle()
    #expect(harness.takeStatuses() == [.ioError, .ioError, .ioError])
    harness.backend.judge = { _ in .serve }
    for _ in 0..<3 { harness.submit(.write, 0, 4096, data: nil) }
    harness.backend.answerHeld()
    harness.settle()
    #expect(harness.takeStatuses() == [.ioError, .ioError, .ioError])
    #expect(harness.backend.log.count == 3)
  }

  @Test func answersMayComeInAnyOrder() throws {
    var random = SeededGenerator(seed: 3)
    for _ in 0..<20 {
      let harness = try Self.withReads(32)
      for index in 0..<64 { harness.backend.disk[index * 4096] = UInt8(index) }
      harness.backend.answerHeld(Array(0..<32).shuffled(using: &random))
      harness.settle()
      #expect(harness.completions.count == 32)
      for completion in harness.completions {
        #expect(harness.contents(completion.operation)[0] == UInt8(completion.tag - 1))
        harness.queue.release(completion.operation)
      }
    }
  }

  @Test func anAnswerWithoutAnEventIsFoundByTheNextPoll() throws {
    let harness = try Self.withReads(1)
    harness.backend.notifyFrontend = {}
    harness.backend.answerHeld()
    harness.settle()
    _ = harness.queue.poll()
    #expect(harness.takeStatuses() == [.okay])
  }

  @Test func anEventWithoutAnAnswerIsCountedAndHarmless() throws {
    let harness = try Self.withReads(1)
    for _ in 0..<5 {
      harness.channels.raise()
      harness.settle()
    }
    #expect(harness.queue.counters.events == 5)
    #expect(harness.queue.counters.spuriousEvents == 5)
    harness.backend.answerHeld()
    harness.settle()
    #expect(harness.takeStatuses() == [.okay])
    #expect(harness.queue.counters.spuriousEvents == 5)
  }

  @Test func whatTheBackendWritesIntoRequestsAndIndicesIsNeverRead() throws {
    let harness = try Self.withReads(8)
    let held = harness.backend.held
    for index in 0..<8 {
      memset(harness.backend.ringBase + 64 + index * harness.backend.layout.stride, 0xFF, 112)
    }
    harness.backend.setIndex(.requestProducer, 0xDEAD_BEEF)
    harness.backend.setIndex(.responseEvent, 0x8000_0000)
    harness.backend.setIndex(.requestEvent, 0x1234_5678)
    for (index, request) in held.enumerated() {
      _ = harness.backend.serve(request)
      harness.backend.forge(at: UInt32(index), id: request.id, operation: 0, status: 0)
    }
    harness.backend.setIndex(.responseProducer, 8)
    harness.channels.raise()
    harness.settle()
    #expect(harness.takeStatuses() == Array(repeating: .okay, count: 8))
    // The private producer counts: the next request comes in slot 8.
    harness.submit(.read, 0, 512)
    harness.queue.poll()
    #expect(harness.backend.index(.requestProducer) == 9)
  }

  @Test func aBackendThatAlwaysWantsNotificationsGetsOneForEachPublishAtMost() throws {
    let harness = try QueueHarness(QueueSetup(isInline: false))
    for index in 0..<100 {
      harness.backend.setIndex(.requestEvent, harness.backend.index(.requestProducer) &+ 1)
      #expect(harness.status(.read, UInt64(index) * 512, 512) == .okay)
    }
    let counters = harness.queue.counters
    #expect(harness.channels.notifications <= 100)
    #expect(counters.notificationsSent == UInt64(harness.channels.notifications))
  }

  @Test func aClosedPortIsReportedAndNothingTraps() throws {
    let harness = try QueueHarness(QueueSetup(isInline: false))
    try harness.channels.unbind(EventChannelPort(5))
    harness.submit(.read, 0, 512)
    harness.settle()
    #expect(!harness.reports.messages.isEmpty)
  }

  @Test func anAnswerToARequestNotYetPublishedBreaksTheQueue() throws {
    let harness = try Self.withReads(1)
    harness.submit(.read, 8192, 4096)
    harness.backend.forge(at: 0, id: harness.backend.held[0].id, operation: 0, status: 0)
    harness.backend.forge(at: 1, id: 1 << 32 | 1, operation: 0, status: 0)
    harness.backend.setIndex(.responseProducer, 3)
    Self.expectBroken(harness, operations: 2)
  }

  @Test(arguments: CopyMode.allCases)
  func aBrokenBackendsPagesAreNeverUsedAgain(copy: CopyMode) throws {
    let harness = try Self.withReads(4, QueueSetup(copy: copy, isInline: false))
    let inUse = Set(harness.backend.held.flatMap { $0.segments.map(\.reference) })
    harness.backend.setIndex(.responseProducer, 77)
    Self.expectBroken(harness, operations: 4)
    #expect(inUse.allSatisfy { harness.sharing.page($0) != nil })
  }

  @Test(arguments: CopyMode.allCases, [(0, 100), (511, 2), (700, 5000), (4095, 1)])
  func onlyTheBytesThatWereAskedForReachTheReader(copy: CopyMode, range: (Int, Int)) throws {
    let harness = try QueueHarness(QueueSetup(copy: copy))
    let data = Pattern.some(64 << 10)
    _ = harness.backend.disk.update(fromContentsOf: data)
    let sharing = harness.sharing
    harness.backend.spoil = { request in
      for segment in request.segments {
        guard let page = sharing.page(segment.reference) else { continue }
        let end = (Int(segment.lastSector) + 1) * 512
        memset(page + end, 0xEE, 4096 - end)
      }
    }
    let (status, read) = harness.perform(.read, UInt64(range.0), UInt64(range.1))
    #expect(status == .okay)
    #expect(read == Array(data[range.0..<range.0 + range.1]))
  }

  @Test(arguments: CopyMode.allCases, GrantMode.allCases)
  func anUntrustedBackendSeesNothingOfEarlierRequestsBehindAWrite(copy: CopyMode, grants: GrantMode)
    throws
  {
    let harness = try QueueHarness(QueueSetup(copy: copy, grants: grants, trusted: false))
    #expect(harness.write(0, [UInt8](repeating: 0x5A, count: 16384)) == .okay)
    var leaks = 0
    let sharing = harness.sharing
    harness.backend.judge = { request in
      for segment in request.segments {
        guard let page = sharing.page(segment.reference) else { continue }
        let end = (Int(segment.lastSector) + 1) * 512
        for byte in end..<4096 where page.load(fromByteOffset: byte, as: UInt8.self) != 0 { leaks += 1 }
      }
      return .serve
    }
    for count in [512, 1024, 4096 + 512, 8192 + 3584] {
      #expect(harness.write(65536, [UInt8](repeating: 0x33, count: count)) == .okay)
      #expect(harness.status(.writeZeroes, 65536, UInt64(count)) == .okay)
    }
    #expect(leaks == 0)
  }

  @Test func indirectPagesAreNotReadAgain() throws {
    let harness = try QueueHarness(QueueSetup(copy: .bounce, isInline: false))
    harness.backend.judge = { _ in .hold }
    let data = Pattern.some(100_000)
    _ = harness.backend.disk.update(fromContentsOf: data)
    harness.submit(.read, 0, 100_000)
    harness.settle()
    for request in harness.backend.held {
      let slot = request.slot
      let reference = GrantRef(slot.withUnsafeBytes { $0.loadUnaligned(fromByteOffset: 28, as: UInt32.self) })
      if request.isIndirect, let page = harness.sharing.page(reference) { memset(page, 0xFF, 4096) }
    }
    harness.backend.answerHeld()
    harness.settle()
    let contents = harness.completions.first.map { harness.contents($0.operation) } ?? []
    #expect(sameBytes(contents, data))
  }

  @Test func slotsShowNothingOfEarlierRequests() throws {
    let harness = try QueueHarness(QueueSetup(copy: .bounce, maxSegments: 11))
    for index in 0..<40 { _ = harness.write(UInt64(index) * 40960, Pattern.some(40960)) }
    harness.backend.log = []
    for index in 0..<40 {
      _ = harness.status(.write, UInt64(index) * 512, 512)
      _ = harness.status(.flush)
    }
    for request in harness.backend.log {
      let used = 24 + request.segments.count * 8
      #expect(request.slot[4..<8].allSatisfy { $0 == 0 })
      #expect(request.slot[used...].allSatisfy { $0 == 0 })
      for (index, _) in request.segments.enumerated() {
        #expect(request.slot[24 + index * 8 + 6] == 0)
        #expect(request.slot[24 + index * 8 + 7] == 0)
      }
    }
  }

  @Test func rubbishOfEveryKindNeverTraps() throws {
    for seed in 0..<400 as Range<UInt64> {
      var random = SeededGenerator(seed: seed)
      let copy = CopyMode.allCases[random.below(2)]
      let harness = try QueueHarness(
        QueueSetup(
          copy: copy, maxSegments: 32, isInline: false, hasBarrier: true,
          discard: DiscardLimits(granularity: 512, alignment: 0, secure: false)))
      harness.backend.judge = { _ in .hold }
      var submitted = 0
      for _ in 0..<(1 + random.below(10)) {
        let command: [BlockRequest.Command] = [.read, .write, .flush, .discard, .writeZeroes]
        harness.submit(
          command[random.below(5)], UInt64(random.below(100_000)), UInt64(random.below(100_000)),
          fua: random.below(3) == 0)
        submitted += 1
      }
      harness.settle()
      let held = harness.backend.held
      for slot in 0..<32 as Range<UInt32> {
        let id = held.isEmpty || random.below(4) == 0 ? random.next() : held[random.below(held.count)].id
        harness.backend.forge(
          at: slot, id: id, operation: UInt8(random.below(8)),
          status: Int16(truncatingIfNeeded: random.below(4) - 2))
      }
      harness.backend.setIndex(.responseProducer, UInt32(random.below(40)))
      harness.queue.poll()
      harness.control.tell { $0.failEverything = .ioError }
      harness.queue.poll()
      #expect(harness.completions.count == submitted)
      #expect(Set(harness.completions.map(\.tag)).count == submitted)
      _ = harness.takeStatuses()
    }
  }
}
