// SPDX-License-Identifier: Apache-2.0
//
// Requests and responses byte for byte against blkif.h's structs, in every layout.

import TestSupport
import Blkif
import CRingReference
import Glibc
import Platform
import Testing
import Xen

@Suite struct WireRequestTests {
  @Test(arguments: ABI.allCases)
  func everyRequestIsLaidOutAsBlkifHLaysItOut(abi: ABI) throws {
    let region = try MappedRegion(anonymous: Page.size)
    var random = SeededGenerator(seed: runSeed)
    let stride = RingLayout(abi).stride
    let reference = UnsafeMutableRawPointer.allocate(byteCount: 112, alignment: 16)
    defer { reference.deallocate() }
    for round in 0..<2000 {
      var ring = FrontRing(pages: region.baseAddress, pageCount: 1, abi: abi)
      let slot = region.baseAddress + RingLayout.headerSize
      slot.initializeMemory(as: UInt8.self, repeating: 0x5A, count: stride)
      let request = AnyRequest.random(using: &random)
      request.write(to: ring.enqueue())
      request.write(toC: reference, x86_32: abi == .x86_32)
      try #require(
        memcmp(slot, reference, stride) == 0, "round \(round), XBD_TEST_SEED=\(runSeed), \(request)")
    }
  }

  @Test(arguments: ABI.allCases)
  func everyFieldOfARequestIsReadWhereBlkifHHasIt(abi: ABI) throws {
    let region = try MappedRegion(anonymous: Page.size)
    var random = SeededGenerator(seed: runSeed)
    let buffer = UnsafeMutableRawPointer.allocate(byteCount: 112, alignment: 16)
    defer { buffer.deallocate() }
    for _ in 0..<500 {
      let front = SwiftFront(region.baseAddress, pageCount: 1, abi: abi, start: 0)
      var back = try BackRing(pages: region.baseAddress, pageCount: 1, abi: abi)
      front.enqueue(.random(using: &random))
      _ = front.publish()
      // Any bytes at all: what a hostile frontend may leave in a slot.
      let slot = region.baseAddress + RingLayout.headerSize
      for index in 0..<112 {
        slot.storeBytes(of: UInt8.random(in: 0...255, using: &random), toByteOffset: index, as: UInt8.self)
      }

      let request = back.takeRequest(into: buffer)
      var fields = cring_fields()
      cring_read_request(slot, abi == .x86_32, &fields)
      #expect(request.operation == fields.operation)
      #expect(request.id == fields.id)
      #expect(request.sector == fields.sector)
      #expect(request.segmentCount == Int(fields.segment_count))
      #expect(request.handle == fields.handle)
      for (index, expected) in segments(of: fields).enumerated() {
        let segment = request.segment(index)
        #expect(segment.reference.rawValue == expected.reference)
        #expect(segment.firstSector == expected.first_sector)
        #expect(segment.lastSector == expected.last_sector)
      }
      #expect(request.discardFlag == fields.discard_flag)
      #expect(request.discardSectorCount == fields.discard_sectors)
      #expect(request.indirectOperation == fields.indirect_operation)
      #expect(request.indirectSegmentCount == Int(fields.indirect_segment_count))
      #expect(request.indirectHandle == fields.indirect_handle)
      let pages = (0..<8).map { request.indirectPage($0).rawValue }
      #expect(pages == indirectReferences(of: fields))
    }
  }

  @Test(arguments: ABI.allCases)
  func aRequestTakenFromTheRingNoLongerChangesWithIt(abi: ABI) throws {
    let region = try MappedRegion(anonymous: Page.size)
    var random = SeededGenerator(seed: runSeed)
    let front = SwiftFront(region.baseAddress, pageCount: 1, abi: abi, start: 0)
    var back = try BackRing(pages: region.baseAddress, pageCount: 1, abi: abi)
    let buffer = UnsafeMutableRawPointer.allocate(byteCount: 112, alignment: 16)
    defer { buffer.deallocate() }
    front.enqueue(.random(using: &random))
    _ = front.publish()
    let request = back.takeRequest(into: buffer)
    let before = (request.id, request.sector, request.operation)
    (region.baseAddress + RingLayout.headerSize).initializeMemory(as: UInt8.self, repeating: 0xFF, count: 112)
    #expect((request.id, request.sector, request.operation) == before)
  }

  @Test func aSegmentHasBlkifHsForm() {
    var random = SeededGenerator(seed: runSeed)
    withUnsafeTemporaryAllocation(byteCount: 8, alignment: 8) { bytes in
      guard let address = bytes.baseAddress else { return }
      for _ in 0..<1000 {
        let segment = Segment(
          reference: GrantRef(UInt32.random(in: 0...UInt32.max, using: &random)),
          firstSector: UInt8.random(in: 0...255, using: &random),
          lastSector: UInt8.random(in: 0...255, using: &random))
        segment.store(to: address)
        #expect(Segment(loading: address) == segment)
        #expect(bytes[6] == 0 && bytes[7] == 0)
        let valid = segment.firstSector <= segment.lastSector && segment.lastSector <= 7
        #expect(segment.isValid == valid)
        if valid { #expect(segment.sectorCount == Int(segment.lastSector - segment.firstSector) + 1) }
      }
    }
  }

  @Test(arguments: [(0, 0), (1, 1), (512, 1), (513, 2), (4095, 8), (4096, 8)])
  func segmentsNeedAnIndirectPageForEach512(segments: Int, pages: Int) {
    #expect(BlkIf.indirectPages(forSegments: segments) == pages)
  }
}
