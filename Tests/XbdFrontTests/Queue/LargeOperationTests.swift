// SPDX-License-Identifier: Apache-2.0
//
// Operations of many requests: a write gives its pages back part by part, a backend on the owner's thread takes one part a
// turn, and a transfer finds its place among many pages.

import Blkif
import CXen
import TestSupport
import Testing

@testable import XbdFront

@Suite struct LargeOperationTests {
  /// A pool for one large write and most of another, whose backend answers when it is told to.
  private static func harness(
    isInline: Bool = false, copy: CopyMode = .direct, grants: GrantMode = .persistent
  ) throws -> QueueHarness {
    let harness = try QueueHarness(
      QueueSetup(copy: copy, grants: grants, poolPages: 480, isInline: isInline, negotiates: false))
    if !isInline { harness.backend.judge = { _ in .hold } }
    return harness
  }

  private static let mebibyte = 1 << 20

  @Test func pagesOfAWriteServeTheNextWhileTheRestOfItIsUnderWay() throws {
    let harness = try Self.harness()
    let first = Pattern.some(Self.mebibyte, seed: 1)
    let second = Pattern.some(Self.mebibyte, seed: 2)
    harness.submit(.write, 0, UInt64(Self.mebibyte), data: first)
    harness.settle()
    #expect(harness.backend.held.count == 8)
    var waited = 0
    var next = harness.begin(.write, UInt64(Self.mebibyte), UInt64(Self.mebibyte))
    while next == nil, !harness.backend.held.isEmpty {
      waited += 1
      harness.backend.answerHeld([0])
      _ = harness.runBackend()
      // Told when it is worth another try, and not before.
      #expect(harness.queue.poll() == (waited == 5))
      harness.settle()
      next = harness.begin(.write, UInt64(Self.mebibyte), UInt64(Self.mebibyte))
    }
    // 256 of at most 360 pages: after five of eight parts.
    #expect(waited == 5)
    #expect(harness.completions.isEmpty)
    let begun = try #require(next)
    harness.fill(begun, second)
    harness.queue.submit(begun)
    while !harness.backend.held.isEmpty {
      harness.backend.answerHeld([0])
      harness.settle()
    }
    #expect(harness.takeStatuses() == [.okay, .okay])
    #expect(sameBytes(Array(harness.diskBytes[..<Self.mebibyte]), first))
    #expect(sameBytes(Array(harness.diskBytes[Self.mebibyte...]), second))
    #expect(harness.queue.counters.bouncedOperations == 0)
  }

  @Test func pagesBehindAPartThatIsMissingStayWhereTheyAre() throws {
    let harness = try Self.harness()
    harness.submit(.write, 0, UInt64(Self.mebibyte), data: Pattern.some(Self.mebibyte, seed: 1))
    harness.settle()
    while harness.backend.held.count > 1 {
      harness.backend.answerHeld([1])
      harness.settle()
      let next = harness.begin(.write, 0, UInt64(Self.mebibyte))
      #expect(next == nil)
    }
    harness.backend.answerHeld()
    harness.settle()
    #expect(harness.takeStatuses() == [.okay])
    #expect(sameBytes(Array(harness.diskBytes[..<Self.mebibyte]), Pattern.some(Self.mebibyte, seed: 1)))
  }

  /// What is settled is not asked again: its pages have been used for something else since.
  @Test func aWriteThatGoesOnWithoutIndirectRequestsLeavesAloneWhatIsWritten() throws {
    let harness = try Self.harness()
    let data = Pattern.some(Self.mebibyte, seed: 3)
    harness.submit(.write, 0, UInt64(Self.mebibyte), data: data)
    harness.settle()
    harness.backend.answerHeld([0, 1, 2])
    harness.settle()
    // The read's zeroes come into the pages that the first parts had.
    harness.submit(.read, UInt64(Self.mebibyte), 74 * 4096)
    harness.settle()
    harness.backend.answerHeld([5, 6, 7])
    harness.settle()
    harness.backend.judge = { _ in .serve }
    for request in harness.backend.held { harness.backend.answer(request, -2) }
    harness.backend.held = []
    harness.backend.publish()
    harness.settle()
    #expect(harness.queue.parameters.maxSegments == BlkIf.maxDirectSegments)
    let again = harness.backend.log.filter { $0.operation == 1 && !$0.isIndirect }
    let restart = try #require(again.first)
    #expect(restart.sector == 3 * 32 * 8)
    #expect(harness.takeStatuses() == [.okay, .okay])
    #expect(sameBytes(Array(harness.diskBytes[..<Self.mebibyte]), data))
  }

  @Test func aWriteThatGoesOnAtAnotherBackendLeavesAloneWhatIsWritten() throws {
    let harness = try Self.harness()
    let data = Pattern.some(Self.mebibyte, seed: 4)
    harness.submit(.write, 0, UInt64(Self.mebibyte), data: data)
    harness.settle()
    harness.backend.answerHeld([0, 1, 2, 5])
    harness.settle()
    let begun = try #require(harness.begin(.write, UInt64(Self.mebibyte), 96 * 4096))
    harness.fill(begun, [UInt8](repeating: 0xEE, count: 96 * 4096))
    harness.loseBackend()
    harness.queue.cancel(begun)
    harness.backend.judge = { _ in .serve }
    try harness.reconnect()
    harness.settle()
    #expect(harness.takeStatuses() == [.okay])
    let restart = try #require(harness.backend.log.first)
    #expect(restart.sector == 3 * 32 * 8)
    #expect(sameBytes(Array(harness.diskBytes[..<Self.mebibyte]), data))
  }

  @Test func aDurableWriteKeepsItsPagesUntilItIsFlushed() throws {
    let harness = try Self.harness()
    let data = Pattern.some(Self.mebibyte, seed: 5)
    harness.submit(.write, 0, UInt64(Self.mebibyte), fua: true, data: data)
    harness.settle()
    harness.backend.answerHeld()
    harness.settle()
    #expect(harness.backend.held.map(\.operation) == [3])
    harness.loseBackend()
    // What it had not flushed is gone.
    harness.backend.disk.update(repeating: 0)
    harness.backend.judge = { _ in .serve }
    try harness.reconnect()
    harness.settle()
    #expect(harness.takeStatuses() == [.okay])
    #expect(sameBytes(Array(harness.diskBytes[..<Self.mebibyte]), data))
  }

  @Test(arguments: CopyMode.allCases, GrantMode.allCases)
  func aBackendOnThisThreadIsAskedForAPartATurn(copy: CopyMode, grants: GrantMode) throws {
    let harness = try Self.harness(isInline: true, copy: copy, grants: grants)
    let data = Pattern.some(Self.mebibyte, seed: 6)
    harness.submit(.write, 0, UInt64(Self.mebibyte), data: data)
    var turns = 0
    repeat {
      harness.queue.poll()
      turns += 1
      #expect(harness.backend.log.reduce(0) { $0 + $1.byteCount } == turns * Int(QueueCore.shortTurn))
      #expect(harness.queue.hasMore == harness.completions.isEmpty)
    } while harness.queue.hasMore && turns < 100
    #expect(turns == 8)
    #expect(harness.takeStatuses() == [.okay])
    #expect(sameBytes(Array(harness.diskBytes[..<Self.mebibyte]), data))
  }

  @Test func aSmallRequestDoesNotWaitForALargeOneOnItsThread() throws {
    let harness = try Self.harness(isInline: true)
    let large = try #require(harness.submit(.read, 0, UInt64(Self.mebibyte)))
    harness.queue.poll()
    let small = try #require(harness.submit(.read, UInt64(Self.mebibyte), 4096))
    harness.settle()
    #expect(harness.completions.map(\.operation) == [small, large])
    #expect(harness.takeStatuses() == [.okay, .okay])
  }

  /// A caller that comes before the last one's request was looked at waits for its pages as it does for those in flight.
  @Test func regression_aWriteBehindOneThatIsAboutToRunIsNotCopied() throws {
    let harness = try Self.harness(isInline: true)
    for round in 0..<6 {
      let offset = UInt64(round % 2 * Self.mebibyte)
      harness.submit(.write, offset, UInt64(Self.mebibyte), data: Pattern.some(Self.mebibyte, seed: round))
    }
    harness.settle()
    #expect(harness.takeStatuses() == [OperationStatus](repeating: .okay, count: 6))
    #expect(harness.queue.counters.bouncedOperations == 0)
    #expect(sameBytes(Array(harness.diskBytes[..<Self.mebibyte]), Pattern.some(Self.mebibyte, seed: 4)))
    #expect(sameBytes(Array(harness.diskBytes[Self.mebibyte...]), Pattern.some(Self.mebibyte, seed: 5)))
  }

  @Test func memoryIsFoundFromAnyPlaceInAnyOrder() throws {
    let harness = try Self.harness()
    // So that the pool's pages lie in no order.
    for count in [5, 40, 3, 17] {
      harness.submit(.write, 0, UInt64(count * 4096), data: Pattern.some(count * 4096))
    }
    harness.settle()
    while !harness.backend.held.isEmpty {
      harness.backend.answerHeld([harness.backend.held.count - 1])
      harness.settle()
    }
    _ = harness.takeStatuses()
    let count = 100 * 4096 - 512
    let operation = try #require(harness.begin(.write, 512, UInt64(count)))
    // One byte after another.
    var places: [UInt] = []
    for vector in harness.memory(operation) {
      for index in 0..<vector.iov_len { places.append(UInt(bitPattern: vector.iov_base) + UInt(index)) }
    }
    #expect(places.count == count)
    var random = SeededGenerator(seed: 7)
    let vectors = UnsafeMutableBufferPointer<iovec>.allocate(capacity: 16)
    defer { vectors.deallocate() }
    for _ in 0..<300 {
      var offset = Int.random(in: 0..<count, using: &random)
      let found = harness.queue.vectors(of: operation, from: offset, into: vectors)
      #expect(found > 0)
      let start = offset
      for index in 0..<found {
        #expect(UInt(bitPattern: vectors[index].iov_base) == places[offset])
        offset += vectors[index].iov_len
        #expect(
          UInt(bitPattern: vectors[index].iov_base) + UInt(vectors[index].iov_len) == places[offset - 1] + 1)
      }
      // Neighbours share a vector, but no more pages are named than there are vectors.
      #expect(offset - start <= 16 * 4096)
    }
    harness.queue.cancel(operation)
  }
}
