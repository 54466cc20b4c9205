// SPDX-License-Identifier: Apache-2.0
//
// What the other end may write into the shared words, and what this end makes of it: a count it can rely on, or a
// violation. Never a trap, never a count beyond what is really there.

import TestSupport
import Blkif
import CRingReference
import Platform
import Testing
import Xen

@Suite struct RingViolationTests {
  static let starts = RingDifferentialTests.starts

  @Test(arguments: starts)
  func aFrontRingBelievesOnlyResponsesToPublishedRequests(start: UInt32) throws {
    let region = try MappedRegion(anonymous: Page.size)
    var ring = FrontRing(pages: region.baseAddress, pageCount: 1, startingAt: start)
    var random = SeededGenerator(seed: runSeed)
    for _ in 0..<10 { AnyRequest.random(using: &random).write(to: ring.enqueue()) }
    _ = ring.publish()
    // Enqueued but not published: an answer to these is a lie.
    for _ in 0..<5 { AnyRequest.random(using: &random).write(to: ring.enqueue()) }
    store(start &+ 4, at: responseProducer, of: region)
    for _ in 0..<4 { _ = ring.takeResponse() }

    for claim in candidates(around: start, using: &random) {
      store(claim, at: responseProducer, of: region)
      let expected = claim &- (start &+ 4)
      do {
        let count = try ring.availableResponses()
        #expect(count == expected && expected <= 6, "rsp_prod \(claim), start \(start)")
      } catch {
        #expect(error == .tooManyResponses(claimed: expected, outstanding: 6))
        #expect(expected > 6, "rsp_prod \(claim), start \(start)")
      }
    }
  }

  @Test(arguments: starts)
  func aBackRingBelievesOnlyRequestsThatFitAndAreNotTakenBack(start: UInt32) throws {
    let region = try MappedRegion(anonymous: Page.size)
    let front = SwiftFront(region.baseAddress, pageCount: 1, abi: .native, start: start)
    var ring = try BackRing(pages: region.baseAddress, pageCount: 1, abi: .native)
    var random = SeededGenerator(seed: runSeed)
    for _ in 0..<20 { front.enqueue(.random(using: &random)) }
    _ = front.publish()
    let buffer = UnsafeMutableRawPointer.allocate(byteCount: 112, alignment: 16)
    defer { buffer.deallocate() }
    for _ in 0..<8 { _ = ring.takeRequest(into: buffer) }
    for id in 0..<3 { ring.push(id: UInt64(id), operation: 0, status: 0) }

    // Answered up to start + 3, taken up to start + 8: req_prod is good from there to start + 3 + 32.
    for claim in candidates(around: start, using: &random) {
      store(claim, at: requestProducer, of: region)
      let beyondAnswered = claim &- (start &+ 3)
      do {
        let count = try ring.availableRequests()
        #expect(count == claim &- (start &+ 8), "req_prod \(claim), start \(start)")
        #expect((5...32).contains(beyondAnswered), "req_prod \(claim), start \(start)")
      } catch {
        #expect(error == .tooManyRequests(claimed: beyondAnswered, capacity: 32))
        #expect(!(5...32).contains(beyondAnswered), "req_prod \(claim), start \(start)")
      }
    }
  }

  @Test(arguments: starts)
  func aBackRingDoesNotAttachToIndicesThatCannotBe(start: UInt32) throws {
    let region = try MappedRegion(anonymous: Page.size)
    _ = SwiftFront(region.baseAddress, pageCount: 1, abi: .native, start: start)
    store(start &+ 33, at: requestProducer, of: region)
    #expect(throws: RingViolation.tooManyRequests(claimed: 33, capacity: 32)) {
      _ = try BackRing(pages: region.baseAddress, pageCount: 1, abi: .native)
    }
  }

  @Test(arguments: starts)
  func theLimitsAreRingHsOwnWhereItHasThem(start: UInt32) throws {
    let region = try MappedRegion(anonymous: Page.size)
    var reference = cring()
    _ = SwiftFront(region.baseAddress, pageCount: 1, abi: .native, start: start)
    cring_back_attach(&reference, region.baseAddress, Page.size, start, false)
    let ring = try BackRing(pages: region.baseAddress, pageCount: 1, abi: .native)
    var random = SeededGenerator(seed: runSeed)
    for claim in candidates(around: start, using: &random) {
      store(claim, at: requestProducer, of: region)
      let refused = (try? ring.availableRequests()) == nil
      #expect(refused == cring_request_prod_overflow(&reference, claim), "req_prod \(claim), start \(start)")
    }
  }

  @Test func everyWordOfTheHeaderMayChangeAtAnyTimeWithoutATrap() throws {
    let region = try MappedRegion(anonymous: Page.size)
    var random = SeededGenerator(seed: runSeed)
    var ring = FrontRing(pages: region.baseAddress, pageCount: 1, startingAt: UInt32.max - 50)
    var back = try BackRing(pages: region.baseAddress, pageCount: 1, abi: .native)
    let buffer = UnsafeMutableRawPointer.allocate(byteCount: 112, alignment: 16)
    defer { buffer.deallocate() }
    for _ in 0..<20_000 {
      store(
        UInt32.random(in: 0...UInt32.max, using: &random), at: 4 * Int.random(in: 0..<4, using: &random),
        of: region)
      if ring.freeSlots > 0 { AnyRequest.random(using: &random).write(to: ring.enqueue()) }
      _ = ring.publish()
      if let count = try? ring.availableResponses(), count > 0 { _ = ring.takeResponse() }
      _ = ring.armNotification()
      if let count = try? back.availableRequests(), count > 0 { _ = back.takeRequest(into: buffer) }
      if back.outstanding > 0 { back.push(id: 0, operation: 0, status: 0) }
      _ = back.publish()
      _ = back.armNotification()
      try #require(ring.outstanding <= 32)
      try #require(back.outstanding <= 32)
    }
  }

  @Test func slotsHoldNothingOfWhatWasThereBefore() throws {
    let region = try MappedRegion(anonymous: Page.size)
    for abi in [ABI.x86_64, .x86_32] {
      var ring = FrontRing(pages: region.baseAddress, pageCount: 1, abi: abi)
      let stride = RingLayout(abi).stride
      (region.baseAddress + RingLayout.headerSize).initializeMemory(
        as: UInt8.self, repeating: 0xAA, count: 32 * stride)
      ring.enqueue().setDirect(.flush, id: 0, handle: 0, sector: 0, segmentCount: 0)
      ring.enqueue().setDiscard(id: 0, handle: 0, sector: 0, sectorCount: 0)
      ring.enqueue().setIndirect(.read, id: 0, handle: 0, sector: 0, segmentCount: 0)
      let slots = UnsafeRawBufferPointer(start: region.baseAddress + RingLayout.headerSize, count: 3 * stride)
      let left = slots.filter { $0 == 0xAA }.count
      #expect(left == 0, "\(abi)")
    }
  }

  @Test func aResponseShowsNothingOfTheRequestInItsOwnBytes() throws {
    let region = try MappedRegion(anonymous: Page.size)
    for (abi, size) in [(ABI.x86_64, 16), (.x86_32, 12)] {
      let front = SwiftFront(region.baseAddress, pageCount: 1, abi: abi, start: 0)
      var back = try BackRing(pages: region.baseAddress, pageCount: 1, abi: abi)
      var random = SeededGenerator(seed: runSeed)
      front.enqueue(.random(using: &random))
      _ = front.publish()
      (region.baseAddress + RingLayout.headerSize).initializeMemory(
        as: UInt8.self, repeating: 0xAA, count: 108)
      withUnsafeTemporaryAllocation(byteCount: 112, alignment: 16) { buffer in
        if let address = buffer.baseAddress { _ = back.takeRequest(into: address) }
      }
      back.push(id: 0, operation: 0, status: 0)
      let response = UnsafeRawBufferPointer(start: region.baseAddress + RingLayout.headerSize, count: size)
      let left = response.filter { $0 != 0 }.count
      #expect(left == 0, "\(abi)")
    }
  }
}

private let requestProducer = 0
private let responseProducer = 8

private func store(_ value: UInt32, at offset: Int, of region: borrowing MappedRegion) {
  region.baseAddress.storeBytes(of: value, toByteOffset: offset, as: UInt32.self)
}

/// Every index near `start`, the ones half the number space away, and random ones.
private func candidates(around start: UInt32, using generator: inout SeededGenerator) -> [UInt32] {
  var values = (0...100).map { start &- 50 &+ $0 }
  values += [0, 1, 31, 32, 33].flatMap { [start &+ 1 << 31 &+ $0, start &+ 1 << 31 &- $0] }
  values += [0, 1, UInt32.max, UInt32.max - 1, 1 << 31, 1 << 31 - 1]
  values += (0..<200).map { _ in UInt32.random(in: 0...UInt32.max, using: &generator) }
  return values
}
