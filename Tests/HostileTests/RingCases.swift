// SPDX-License-Identifier: Apache-2.0
//
// Cases 1 to 11, 13 and 17 of the hostile backend: what it writes into the ring. A response that matches nothing
// breaks the device; what only looks odd changes nothing.

import Blkif
import CXen
import Glibc
import HostileBackend
import Platform
import Synchronization
import Testing
import Xen

@testable import XbdFront

@Suite struct RingCases {
  /// A device with reads that its backend answers as the plan says.
  static func broken(
    _ faults: [Fault], after: Int = 0, _ reason: String, count: Int = 4, copy: CopyMode = .direct,
    sourceLocation: SourceLocation = #_sourceLocation
  ) throws {
    let victim = try Victim(Plan(faults, after: after), options: Victim.options { $0.copy = copy })
    for _ in 0..<after { #expect(victim.status(.read, 0, 4096) == .okay) }
    let tags = (0..<count).map { victim.submit(.read, $0 * 4096, 4096) }
    // Some may have been answered before the backend went wrong.
    victim.run(
      "an end of everything", until: { tags.allSatisfy { $0.map { victim.ended[$0] != nil } ?? true } })
    let failed = tags.filter { $0.flatMap { victim.ended[$0]?.status } != .okay }
    #expect(!failed.isEmpty, sourceLocation: sourceLocation)
    victim.expectBroken(reason, inFlight: failed, sourceLocation: sourceLocation)
    victim.stop(sourceLocation: sourceLocation)
  }

  @Test(arguments: [Fault.WrongID.beyondTheRing, .allOnes], CopyMode.allCases)
  func case01_anIDBeyondTheRingBreaksTheDevice(id: Fault.WrongID, copy: CopyMode) throws {
    try Self.broken([.wrongID(id)], "which was never sent", copy: copy)
  }

  @Test func case02_anIDOfASlotThatWasNeverUsedBreaksTheDevice() throws {
    try Self.broken([.wrongID(.neverUsed)], "which is not in flight")
  }

  @Test(arguments: [true, false])
  func case03_anAnswerGivenTwiceBreaksTheDevice(sameBatch: Bool) throws {
    // Every other request stays unanswered, so that the ring has room for the second answers.
    try Self.broken(
      [.answerTwice(sameBatch: sameBatch), .neverAnswer(every: 2)], "which is not in flight", count: 8)
  }

  @Test(arguments: [Fault.WrongID.highBitSet, .earlierUse])
  func case04_theWholeOfTheIDIsCompared(id: Fault.WrongID) throws {
    try Self.broken([.wrongID(id)], after: 1, "which is not in flight")
  }

  @Test(arguments: [1, 2, 3, 4, 5, 6, 7, 255] as [UInt8])
  func case05_anotherOperationThanTheRequestsBreaksTheDevice(operation: UInt8) throws {
    try Self.broken([.operation(operation)], "the backend answered operation 0 as operation \(operation)")
    // An indirect request may be answered as what it is or as what is in it.
    let victim = try Victim(Plan([.outerOperation]))
    victim.expectWorking(seed: UInt64(operation))
    #expect(victim.queue.counters.outerOperationResponses > 0)
    victim.stop()
  }

  @Test(
    arguments: [
      (0, .okay), (-1, .ioError), (-2, .notSupported), (1, .ioError), (32767, .ioError), (-32768, .ioError),
    ] as [(Int16, OperationStatus)], CopyMode.allCases)
  func case06_aStatusWithoutAMeaningIsAnErrorOfThatRequest(wire: (Int16, OperationStatus), copy: CopyMode)
    throws
  {
    let victim = try Victim(Plan([.status(wire.0)]), options: Victim.options { $0.copy = copy })
    let read = try #require(victim.perform(.read, 0, 8192))
    #expect(read.status == wire.1)
    #expect(read.data.count == (wire.0 == 0 ? 8192 : 0))
    victim.backend.follow(Plan())
    victim.expectWorking()
    victim.stop()
  }

  @Test(arguments: [1, 29, 33, 1 << 31, UInt32.max - 1, UInt32.max - 40] as [UInt32])
  func case07_aProducerThatMakesNoSenseBreaksTheDevice(add: UInt32) throws {
    // One answer first, so that the index can go back behind it. Legitimate wrapping at 2³²:
    // QueueTests of XbdFrontTests, RingDifferentialTests.
    try Self.broken([.producer(add: add)], after: 1, "responses", count: 1)
  }

  @Test func case08_aResponseIsReadOnce() throws {
    // A thread flips operation and status of every slot together: a mixture would show two reads.
    let pages = UnsafeMutableRawPointer.allocate(byteCount: 4096, alignment: 4096)
    defer { pages.deallocate() }
    // What memory had in it before the thread has begun would be a mixture as well.
    pages.initializeMemory(as: UInt8.self, repeating: 0, count: 4096)
    var ring = FrontRing(pages: pages, pageCount: 1)
    let stop = Locked(false)
    nonisolated(unsafe) let base = pages
    let flipper = try DedicatedThread(name: "flip") {
      while !stop.with({ $0 }) {
        for round in 0..<64 as Range<UInt32> {
          for slot in 0..<32 {
            let word = UnsafePointer(
              (base + 64 + slot * 112 + 8).assumingMemoryBound(to: Atomic<UInt32>.self))
            word.pointee.store(round & 1 == 0 ? 0 : 0x7FFF_0003, ordering: .relaxed)
          }
        }
      }
    }
    var mixed = 0
    var seen = Set<Int16>()
    for round in 0..<6000 as Range<UInt32> {
      for _ in 0..<32 { _ = ring.enqueue() }
      _ = ring.publish()
      UnsafePointer((pages + 8).assumingMemoryBound(to: Atomic<UInt32>.self)).pointee
        .store((round &+ 1) &* 32, ordering: .releasing)
      #expect(try ring.availableResponses() == 32)
      for _ in 0..<32 {
        let response = ring.takeResponse()
        seen.insert(response.status)
        if (response.operation == 0) != (response.status == 0) { mixed += 1 }
      }
    }
    stop.with { $0 = true }
    flipper.join()
    #expect(mixed == 0)
    #expect(seen.contains(0))
    // The same done to a device: each request ends well, or the device is broken; never one without the other.
    for _ in 0..<4 {
      let victim = try Victim(Plan([.flipResponses]))
      for index in 0..<50 where victim.queue.violation == nil {
        let status = victim.status(.read, index * 4096, 4096)
        #expect(status == .okay || victim.queue.violation != nil)
      }
      victim.stop()
    }
  }

  @Test(arguments: CopyMode.allCases)
  func case09_rubbishInAResponsesPaddingIsIgnored(copy: CopyMode) throws {
    let victim = try Victim(Plan([.rubbishPadding]), options: Victim.options { $0.copy = copy })
    victim.expectWorking()
    victim.stop()
  }

  @Test(arguments: CopyMode.allCases)
  func case10_aBackendThatNeverAnswersIsGivenUpAfterTheTimeout(copy: CopyMode) throws {
    let victim = try Victim(
      Plan([.neverAnswer(every: 1)], after: 2),
      options: Victim.options {
        $0.requestTimeout = .seconds(3)
        $0.copy = copy
      })
    #expect(victim.status(.read, 0, 4096) == .okay)
    #expect(victim.status(.write, 4096, 4096) == .okay)
    let tags = [
      victim.submit(.read, 4096, 8192), victim.submit(.write, 0, 512), victim.submit(.flush),
    ]
    let began = MonotonicClock.nanoseconds()
    victim.expectBroken(
      "left 3 requests unanswered, the oldest, a read of 16 sectors at 8, for 3 s", inFlight: tags)
    #expect(MonotonicClock.nanoseconds() - began < 20_000_000_000)
    let sentence = victim.failure?.message ?? ""
    #expect(
      sentence.contains("frontend 4 (Connected)") && sentence.contains("backend 4 (Connected)"), "\(sentence)"
    )
    victim.stop()
  }

  @Test func case10_oneRequestAmongManyThatIsNeverAnsweredIsFound() throws {
    let victim = try Victim(
      Plan([.failNth(0), .neverAnswer(every: 7)]), options: Victim.options { $0.requestTimeout = .seconds(1) }
    )
    let first = (0..<7).map { victim.submit(.read, $0 * 4096, 4096) }
    let withheld = first[6]
    // The backend goes on with everything else, at a pace that leaves no silence.
    let began = MonotonicClock.nanoseconds()
    var index = 0
    while victim.failure == nil, MonotonicClock.nanoseconds() - began < 20_000_000_000 {
      index += 1
      _ = victim.submit(.read, index % 64 * 4096, 512)
      victim.run(milliseconds: 5)
    }
    victim.expectBroken("unanswered", inFlight: [withheld])
    victim.stop()
  }

  @Test func case10_withoutATimeoutClosingEndsTheWaitAndLateAnswersReachNobody() throws {
    let victim = try Victim(Plan([.answerLate(milliseconds: 3000)]))
    let tags = (0..<4).map { victim.submit(.read, $0 * 4096, 4096) }
    victim.run(milliseconds: 100)
    #expect(victim.ended.isEmpty)
    let pages = victim.queue.counters.poolPages
    victim.device.close()
    victim.run("a closed device", until: { victim.device.waitUntilClosed(milliseconds: 1) })
    victim.run("ends", until: { victim.ended.count == 4 })
    #expect(tags.allSatisfy { $0.flatMap { victim.ended[$0]?.status } == .shutdown })
    #expect(victim.status(.read, 0, 4096) == .shutdown)
    #expect(victim.queue.counters.poolPages == pages)
    victim.stop()
  }

  @Test(arguments: CopyMode.allCases, [2, 31, 32])
  func case11_answersInAnyOrderAreRight(copy: CopyMode, batch: Int) throws {
    let victim = try Victim(Plan([.reverseAnswers(batch: batch)]), options: Victim.options { $0.copy = copy })
    let tags = (0..<64).map { victim.submit(.read, $0 * 4096, 4096) }
    victim.run("every answer", until: { victim.ended.count == 64 })
    for (index, tag) in tags.enumerated() {
      #expect(tag.flatMap { victim.ended[$0]?.data } == victim.backend.disk.contents(index * 4096, 4096))
    }
    victim.expectWorking()
    victim.stop()
  }

  @Test func case13_whatTheBackendWritesOverRequestsAndIndicesIsNeverRead() throws {
    // The request producer, which this backend reads itself: QueueTests of XbdFrontTests.
    let victim = try Victim(Plan([.scribbleHeader, .scribbleSlots, .answerLate(milliseconds: 3)]))
    let tags = (0..<20).map { victim.submit(.read, $0 * 8192, 8192) }
    victim.run("every answer", until: { victim.ended.count == 20 })
    for (index, tag) in tags.enumerated() {
      #expect(tag.flatMap { victim.ended[$0]?.data } == victim.backend.disk.contents(index * 8192, 8192))
    }
    victim.expectWorking()
    victim.stop()
  }

  @Test func case17_anAnswerToARequestThatWasNotSentBreaksTheDevice() throws {
    // One request, two answers: the second is to the slot's next use.
    try Self.broken([.answerTheFuture], "responses", count: 1)
    // With room for it in the ring.
    try Self.broken([.answerTheFuture, .neverAnswer(every: 2)], "which is not in flight", count: 6)
  }
}
