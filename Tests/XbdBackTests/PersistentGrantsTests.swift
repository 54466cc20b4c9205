// SPDX-License-Identifier: Apache-2.0

import TestSupport
import Blkif
import Glibc
import Platform
import Testing
import Xen

@testable import XbdBack

@Suite struct PersistentGrantsTests {
  /// A page that is never touched.
  private func mapped(_ reference: UInt32) -> MappedPage {
    MappedPage(
      UnsafeMutableRawPointer(bitPattern: UInt(reference) &* 4096 &+ 4096)
        ?? UnsafeMutableRawPointer.allocate(byteCount: 1, alignment: 1))
  }

  /// The reference that a page was made for.
  private func reference(of page: MappedPage?) -> UInt32? {
    let segment = Segment(reference: GrantRef(0), firstSector: 0, lastSector: 0)
    return page.map { UInt32(UInt(bitPattern: $0.address(of: segment)) / 4096 - 1) }
  }

  @Test func theMapAgreesWithADictionaryUnderRandomUse() {
    var generator = SeededGenerator(seed: 42)
    for limit in [1, 2, 7, 100] {
      var grants = PersistentGrants(limit: limit)
      var model: [UInt32: UInt32] = [:]
      for _ in 0..<20_000 {
        // References that fall on few homes, so that chains form and are broken up.
        let reference = UInt32(truncatingIfNeeded: generator.next() % 40) &* 0x1000
        if let entry = grants.acquire(reference, second: 0) {
          #expect(model[reference] == entry)
          let found = self.reference(of: grants.page(entry))
          #expect(found == reference)
          grants.release(entry)
          if generator.next() % 3 == 0 {
            let removed = self.reference(of: grants.remove(entry))
            #expect(removed == reference)
            model[reference] = nil
          }
        } else {
          #expect(model[reference] == nil)
          if grants.count < limit {
            let entry = grants.insert(reference, mapped(reference), second: 0)
            grants.release(entry)
            model[reference] = entry
          }
        }
        let count = grants.count
        #expect(count == model.count)
      }
    }
  }

  @Test func aPurgeTakesTheLeastRecentlyUsedAndNoneInUse() {
    var grants = PersistentGrants(limit: 100)
    for reference in 0..<100 as Range<UInt32> {
      grants.release(grants.insert(reference, mapped(reference), second: 10))
    }
    // 0 is in use, 1 was used again.
    let held = grants.acquire(0, second: 10)
    if let again = grants.acquire(1, second: 10) { grants.release(again) }
    var gone: [UInt32?] = []
    grants.purge(percent: 5, unusedSeconds: 60, second: 20) { gone.append(reference(of: $0)) }
    #expect(gone.isEmpty, "the limit was enough, and nothing is old")
    grants.overflowed = true
    grants.purge(percent: 5, unusedSeconds: 60, second: 20) { gone.append(reference(of: $0)) }
    #expect(gone == [2, 3, 4, 5, 6])
    gone = []
    grants.purge(percent: 5, unusedSeconds: 60, second: 70) { gone.append(reference(of: $0)) }
    #expect(gone.count == 94 && !gone.contains(0))
    let count = grants.count
    #expect(count == 1 && held != nil)
  }

  @Test func keptPagesAreMappedOnceAndForWriting() throws {
    try withBackend { frontend, backend in
      try frontend.connect(backend, try MemoryStorage(byteCount: 1 << 20))
      let first = frontend.dataPage
      for _ in 0..<5 {
        #expect(try frontend.perform(.write, [page(first), page(first + 1)]) == 0)
        #expect(try frontend.perform(.read, [page(first + 1), page(first)]) == 0)
      }
      let statistics = try #require(frontend.device?.statistics)
      #expect(statistics.persistentMisses == 2)
      #expect(statistics.persistentHits == 18)
      #expect(statistics.persistentGrants == 2)
      #expect(frontend.xen.mappedPages == 3)
      frontend.set("state", "6")
      #expect(eventually { frontend.backState == "6" })
      #expect(frontend.xen.mappedPages == 0)
      #expect(frontend.device?.statistics.persistentGrants == 0)
    }
  }

  @Test(arguments: [true, false]) func withoutPersistenceNothingStaysMapped(batch: Bool) throws {
    try withBackend { frontend, backend in
      try frontend.connect(
        backend, try MemoryStorage(byteCount: 1 << 20), .colocated { $0.batchMapping = batch },
        persistent: false)
      let first = frontend.dataPage
      let before = frontend.xen.mapCalls
      #expect(try frontend.perform(.write, (0..<11).map { page(first + $0) }) == 0)
      #expect(frontend.xen.mapCalls - before == (batch ? 1 : 11))
      #expect(frontend.xen.mappedPages == 1)
      #expect(frontend.device?.statistics.transientMaps == 11)
    }
  }

  @Test(arguments: [0, 1, 7]) func beyondTheLimitPagesAreMappedForTheirRequest(limit: Int) throws {
    try withBackend { frontend, backend in
      try frontend.connect(
        backend, try MemoryStorage(byteCount: 1 << 20),
        .colocated {
          $0.maxPersistentGrants = limit
          $0.purgePercent = 0
        })
      let first = frontend.dataPage
      for index in 0..<11 as Range<UInt32> {
        memset(frontend.xen.page(first + index), Int32(index) + 1, Page.size)
      }
      #expect(try frontend.perform(.write, (0..<11).map { page(first + $0) }) == 0)
      #expect(frontend.xen.mappedPages == 1 + limit)
      // Kept and not kept pages in turn, and one of each twice.
      let mixed: [UInt32] = [10, 0, 9, 1, 8, 2, 10, 0]
      #expect(try frontend.perform(.write, sector: 128, mixed.map { page(first + $0) }) == 0)
      #expect(try frontend.perform(.read, sector: 128, (0..<8).map { page(first + 20 + $0) }) == 0)
      for (index, source) in mixed.enumerated() {
        #expect(frontend.xen.page(first + 20 + UInt32(index)).load(as: UInt8.self) == UInt8(source + 1))
      }
      #expect(frontend.xen.mappedPages == 1 + limit)
      #expect(frontend.device?.statistics.persistentGrants == UInt64(limit))
    }
  }

  @Test func whenTheLimitIsNotEnoughTheOldestMakeRoom() throws {
    try withBackend { frontend, backend in
      try frontend.connect(
        backend, try MemoryStorage(byteCount: 1 << 20),
        .colocated {
          $0.maxPersistentGrants = 4
          $0.purgeIntervalMilliseconds = 0
          $0.purgePercent = 50
        })
      let first = frontend.dataPage
      for round in 0..<50 as Range<UInt32> {
        #expect(try frontend.perform(.write, sector: UInt64(round), [page(first + round % 8)]) == 0)
      }
      let statistics = try #require(frontend.device?.statistics)
      #expect(statistics.persistentEvictions > 0)
      #expect(statistics.persistentGrants <= 4)
      #expect(frontend.xen.mappedPages == 1 + Int(statistics.persistentGrants))
    }
  }

  @Test func theSameReferenceTwiceInOneRequestAndInFlightIsOnePage() throws {
    try withBackend { frontend, backend in
      try frontend.connect(backend, try MemoryStorage(byteCount: 1 << 20))
      let reference = frontend.dataPage
      memset(frontend.xen.page(reference), 0x77, Page.size)
      let ids = (0..<8).map {
        frontend.enqueue(.write, sector: UInt64($0 * 16), [page(reference), page(reference)])
      }
      for id in ids { #expect(try frontend.wait(for: id).status == 0) }
      #expect(frontend.device?.statistics.persistentGrants == 1)
      #expect(frontend.xen.mappedPages == 2)
    }
  }

  @Test func aReadOnlyGrantCanBeWrittenFromButNotReadInto() throws {
    try withBackend { frontend, backend in
      try frontend.connect(backend, try MemoryStorage(byteCount: 1 << 20), persistent: false)
      let reference = frontend.dataPage
      frontend.xen.grant(reference..<reference + 1, writable: false)
      #expect(try frontend.perform(.write, [page(reference)]) == 0)
      #expect(try frontend.perform(.read, [page(reference)]) == -1)
    }
  }

  @Test(arguments: [XenError.Code.limitReached, .invalid])
  func aBackendWithoutHandlesAnswersErrorAndRecovers(code: XenError.Code) throws {
    try withBackend { frontend, backend in
      try frontend.connect(backend, try MemoryStorage(byteCount: 1 << 20))
      frontend.xen.allowMaps(1, then: code)
      let first = frontend.dataPage
      #expect(try frontend.perform(.write, [page(first), page(first + 1)]) == -1)
      frontend.xen.allowMaps(.max)
      #expect(try frontend.perform(.write, [page(first), page(first + 1)]) == 0)
    }
  }

  @Test func grantCopyMovesTheSameBytesAndMapsOnlyTheRing() throws {
    try withBackend { frontend, backend in
      try frontend.connect(
        backend, try MemoryStorage(byteCount: 1 << 20), .colocated { $0.dataPath = .grantCopy })
      #expect(frontend.node("feature-persistent") == "0")
      let first = frontend.dataPage
      for index in 0..<20 as Range<UInt32> {
        memset(frontend.xen.page(first + index), Int32(index) + 1, Page.size)
      }
      let segments = (0..<20).map {
        Segment(reference: GrantRef(first + $0), firstSector: 1, lastSector: 6)
      }
      let list = first + 50
      #expect(
        try frontend.wait(for: frontend.enqueueIndirect(.write, sector: 3, segments, page: list)).status == 0)
      for index in 0..<20 as Range<UInt32> { memset(frontend.xen.page(first + index), 0, Page.size) }
      #expect(
        try frontend.wait(for: frontend.enqueueIndirect(.read, sector: 3, segments, page: list)).status == 0)
      for index in 0..<20 as Range<UInt32> {
        let bytes = UnsafeRawBufferPointer(start: frontend.xen.page(first + index), count: Page.size)
        #expect(bytes[511] == 0 && bytes[512] == UInt8(index + 1) && bytes[3583] == UInt8(index + 1))
        #expect(bytes[3584] == 0)
      }
      #expect(try frontend.perform(.write, [page(first), page(1_000_000)]) == -1)
      #expect(frontend.xen.mappedPages == 1)
      #expect(frontend.device?.statistics.grantCopies == 44)
    }
  }
}
