// SPDX-License-Identifier: Apache-2.0

import Blkif
import Glibc
import Platform
import Testing
import Xen

@testable import XbdBack

@Suite struct RequestTests {
  @Test(arguments: ABI.allCases, [0, UInt32.max - 3]) func everyKindOfRequestWorksInEveryLayout(
    abi: ABI, start: UInt32
  ) throws {
    try withBackend(abi: abi) { frontend, backend in
      try frontend.connect(backend, try MemoryStorage(byteCount: 1 << 20), start: start)
      let source = frontend.dataPage
      let target = source + 1
      memset(frontend.xen.page(source), 0x5A, Page.size)
      #expect(try frontend.perform(.write, sector: 8, [page(source)]) == 0)
      #expect(try frontend.perform(.flush) == 0)
      #expect(try frontend.perform(.writeBarrier, sector: 16, [page(source)]) == 0)
      #expect(try frontend.perform(.writeBarrier) == 0)
      #expect(try frontend.perform(.flush, sector: 24, [page(source)]) == 0)
      for sector in [8, 16, 24] as [UInt64] {
        memset(frontend.xen.page(target), 0, Page.size)
        let id = frontend.enqueueIndirect(.read, sector: sector, [page(target)], page: target + 1)
        let response = try frontend.wait(for: id)
        #expect(response.status == 0)
        #expect(response.operation == BlockOperation.read.rawValue)
        #expect(memcmp(frontend.xen.page(source), frontend.xen.page(target), Page.size) == 0)
      }
      #expect(try frontend.discard(sector: 8, count: 8) == 0)
      #expect(try frontend.perform(.read, sector: 8, [page(target)]) == 0)
      #expect(frontend.xen.page(target).load(as: UInt64.self) == 0)
      let statistics = try #require(frontend.device?.statistics)
      #expect(statistics.errors == 0)
      #expect(statistics.indirects == 3)
      #expect(statistics.sectorsWritten == 24)
      #expect(statistics.sectorsRead == 32)
      #expect(statistics.sectorsDiscarded == 8)
    }
  }

  @Test func partsOfPagesGoWhereTheirSectorsSay() throws {
    try withBackend { frontend, backend in
      let storage = try MemoryStorage(byteCount: 1 << 20)
      try frontend.connect(backend, storage)
      let first = frontend.dataPage
      for index in 0..<3 { memset(frontend.xen.page(first + UInt32(index)), Int32(index + 1), Page.size) }
      let segments = [
        Segment(reference: GrantRef(first), firstSector: 3, lastSector: 4),
        Segment(reference: GrantRef(first + 1), firstSector: 7, lastSector: 7),
        Segment(reference: GrantRef(first + 2), firstSector: 0, lastSector: 0),
      ]
      #expect(try frontend.perform(.write, sector: 5, segments) == 0)
      let target = first + 5
      #expect(try frontend.perform(.read, sector: 5, [page(target)]) == 0)
      let bytes = UnsafeRawBufferPointer(start: frontend.xen.page(target), count: Page.size)
      #expect(Array(bytes).enumerated().allSatisfy { $1 == [1, 1, 2, 3, 0, 0, 0, 0][$0 / 512] })
    }
  }

  @Test func aQueueWithItsOwnThreadAnswersAndNotifies() throws {
    try withBackend { frontend, backend in
      try frontend.connect(backend, try MemoryStorage(byteCount: 1 << 20), BackendConfiguration())
      for round in 0..<100 {
        #expect(try frontend.perform(.write, sector: UInt64(round), [page(frontend.dataPage)]) == 0)
      }
      let statistics = try #require(frontend.device?.statistics)
      #expect(statistics.writes == 100)
      #expect(statistics.notificationsSent >= 1)
    }
  }

  @Test func aColocatedQueueNeitherNotifiesNorAsksForNotifications() throws {
    try withBackend { frontend, backend in
      try frontend.connect(backend, try MemoryStorage(byteCount: 1 << 20))
      for round in 0..<100 {
        #expect(try frontend.perform(.write, sector: UInt64(round), [page(frontend.dataPage)]) == 0)
      }
      #expect(frontend.device?.statistics.notificationsSent == 0)
      // The first request of a new ring always asks for one (ring.h: req_event = 1).
      #expect(frontend.notifications == 1)
    }
  }

  struct Hostile: Sendable, CustomTestStringConvertible {
    let testDescription: String
    let status: Int16
    let send: @Sendable (TestFrontend) throws -> Int16
    init(_ name: String, status: Int16 = -1, _ send: @escaping @Sendable (TestFrontend) throws -> Int16) {
      testDescription = name
      self.status = status
      self.send = send
    }
  }

  static let sectors: UInt64 = 2048
  static func segment(_ reference: UInt32, _ first: UInt8, _ last: UInt8) -> Segment {
    Segment(reference: GrantRef(reference), firstSector: first, lastSector: last)
  }
  static func poked(_ operation: BlockOperation, _ value: UInt8, at offset: Int)
    -> @Sendable (TestFrontend)
    throws -> Int16
  {
    { frontend in
      let id = frontend.enqueue(operation, sector: 0, [page(frontend.dataPage)])
      frontend.poke(value, at: offset)
      return try frontend.wait(for: id).status
    }
  }
  static func indirect(
    inner: BlockOperation = .read, count: Int = 1, pageReference: UInt32? = nil, segment: Segment? = nil
  ) -> @Sendable (TestFrontend) throws -> Int16 {
    { frontend in
      let list = frontend.dataPage + 4
      frontend.fillIndirect([segment ?? page(frontend.dataPage)], page: list)
      let id = frontend.enqueue { slot, id in
        slot.setIndirect(inner, id: id, handle: 0, sector: 0, segmentCount: min(count, 4096))
        for index in 0..<8 { slot.setIndirectPage(index, GrantRef(pageReference ?? list)) }
      }
      if count > 4096 {
        frontend.poke(UInt8(count & 0xFF), at: 2)
        frontend.poke(UInt8(count >> 8), at: 3)
      }
      return try frontend.wait(for: id).status
    }
  }

  static let hostile: [Hostile] = [
    Hostile("read of no segments") { try $0.perform(.read) },
    Hostile("write of no segments") { try $0.perform(.write) },
    Hostile("12 segments", poked(.write, 12, at: 1)),
    Hostile("255 segments", poked(.read, 255, at: 1)),
    Hostile("flush of 12 segments", poked(.flush, 12, at: 1)),
    Hostile("barrier of 255 segments", poked(.writeBarrier, 255, at: 1)),
    Hostile("first behind last") { try $0.perform(.read, [segment($0.dataPage, 5, 4)]) },
    Hostile("last is 8") { try $0.perform(.read, [segment($0.dataPage, 0, 8)]) },
    Hostile("last is 255") { try $0.perform(.write, [segment($0.dataPage, 255, 255)]) },
    Hostile("one bad segment among good ones") {
      try $0.perform(.write, [page($0.dataPage), segment($0.dataPage, 7, 0)])
    },
    Hostile("one sector past the end") { try $0.perform(.read, sector: sectors - 7, [page($0.dataPage)]) },
    Hostile("at the end") { try $0.perform(.write, sector: sectors, [segment($0.dataPage, 0, 0)]) },
    Hostile("sector 2^64-1") { try $0.perform(.write, sector: .max, [page($0.dataPage)]) },
    Hostile("sector that overflows as bytes") { try $0.perform(.read, sector: 1 << 55, [page($0.dataPage)]) },
    Hostile("barrier past the end") { try $0.perform(.writeBarrier, sector: sectors, [page($0.dataPage)]) },
    Hostile("flush past the end") { try $0.perform(.flush, sector: sectors, [page($0.dataPage)]) },
    Hostile("no such grant") { try $0.perform(.read, [page(1_000_000)]) },
    Hostile("grant 2^32-1") { try $0.perform(.write, [page(.max)]) },
    Hostile("a good grant and none") { try $0.perform(.write, [page($0.dataPage), page(1_000_000)]) },
    Hostile("barrier without a grant") { try $0.perform(.writeBarrier, [page(1_000_000)]) },
    Hostile("operation 4", status: -2, poked(.read, 4, at: 0)),
    Hostile("operation 7", status: -2, poked(.read, 7, at: 0)),
    Hostile("operation 255", status: -2, poked(.read, 255, at: 0)),
    Hostile("discard past the end") { try $0.discard(sector: sectors - 1, count: 2) },
    Hostile("discard that overflows") { try $0.discard(sector: 2, count: .max) },
    Hostile("discard of everything there could be") { try $0.discard(sector: .max, count: .max) },
    Hostile("indirect of no segments", indirect(count: 0)),
    Hostile("indirect past the limit", indirect(count: 257)),
    Hostile("indirect of 65535", indirect(count: 65535)),
    Hostile("indirect flush", indirect(inner: .flush)),
    Hostile("indirect barrier", indirect(inner: .writeBarrier)),
    Hostile("indirect indirect", indirect(inner: .indirect)),
    Hostile("indirect discard", indirect(inner: .discard)),
    Hostile("indirect page that is no grant", indirect(pageReference: 1_000_000)),
    Hostile("indirect segment that is no grant", indirect(segment: page(1_000_000))),
    Hostile("indirect segment out of its page", indirect(segment: segment(1, 0, 8))),
  ]

  @Test(arguments: hostile, [true, false])
  func aHostileRequestIsRefusedAndLeavesNothingBehind(_ request: Hostile, persistent: Bool) throws {
    try withBackend(abi: .x86_64) { frontend, backend in
      let storage = try MemoryStorage(byteCount: Self.sectors * 512)
      try frontend.connect(backend, storage, persistent: persistent)
      memset(frontend.xen.page(frontend.dataPage), 0xFF, Page.size)
      let mapped = frontend.xen.mappedPages
      #expect(try request.send(frontend) == request.status)
      if !persistent { #expect(frontend.xen.mappedPages == mapped) }
      let target = frontend.dataPage + 1
      #expect(try frontend.perform(.read, sector: 0, [page(target)]) == 0)
      #expect(frontend.xen.page(target).load(as: UInt64.self) == 0, "a refused write changed the disk")
      let statistics = try #require(frontend.device?.statistics)
      #expect(statistics.errors + statistics.notSupported == 1)
    }
  }

  /// What a backend may come upon before it has read in xenstore that the frontend's domain was restored.
  @Test(arguments: [true, false], [BackendConfiguration.DataPath.map, .grantCopy])
  func nothingIsAnsweredOnceTheRingIsNotGrantedAnyMore(
    persistent: Bool, dataPath: BackendConfiguration.DataPath
  ) throws {
    try withBackend { frontend, backend in
      try frontend.connect(
        backend, try MemoryStorage(byteCount: 1 << 20), .colocated { $0.dataPath = dataPath },
        persistent: persistent)
      let lost = frontend.dataPage + 7
      frontend.xen.revoke(lost)
      // As long as the ring is granted it is a mistake of the frontend's.
      #expect(try frontend.perform(.write, [page(lost)]) == -1)
      #expect(frontend.device?.colocatedQueue(0)?.queue.hasLostRing == false)
      let (mapped, errors) = (frontend.xen.mappedPages, frontend.device?.statistics.errors)
      frontend.xen.revoke(0)
      for request in [
        frontend.enqueue(.read, sector: 0, [page(lost)]), frontend.enqueue(.write, sector: 0, [page(lost)]),
        frontend.enqueueIndirect(.write, sector: 0, [page(lost)], page: lost),
      ] {
        try frontend.publishRequests()
        _ = frontend.device?.colocatedQueue(0)?.run()
        try frontend.collect()
        #expect(frontend.responses[request] == nil)
      }
      #expect(frontend.device?.colocatedQueue(0)?.queue.hasLostRing == true)
      #expect(frontend.xen.mappedPages == mapped)
      #expect(frontend.device?.statistics.errors == errors)
      // The frontend that comes back is served.
      frontend.set("state", "1")
      #expect(eventually { frontend.backState == "2" })
      try frontend.publish(persistent: persistent)
      #expect(eventually { frontend.backState == "4" })
      #expect(try frontend.perform(.write, [page(lost)]) == 0)
    }
  }

  @Test(arguments: [33, 64, UInt32.max / 2, UInt32.max]) func aRingThatOverflowsIsHaltedAndReported(
    claimed: UInt32
  ) throws {
    try withBackend { frontend, backend in
      try frontend.connect(backend, try MemoryStorage(byteCount: 1 << 20))
      frontend.writeRequestProducer(claimed)
      #expect(frontend.device?.colocatedQueue(0)?.run() == false)
      #expect(eventually { frontend.backState == "5" })
      #expect(frontend.errorNode?.contains("the ring is halted") == true)
      frontend.set("state", "6")
      #expect(eventually { frontend.backState == "6" })
    }
  }

  @Test func aReadOnlyDiskRefusesEveryChange() throws {
    try withBackend { frontend, backend in
      try frontend.connect(
        backend, try MemoryStorage(byteCount: 1 << 20), .colocated { $0.readOnly = true })
      #expect(frontend.node("info") == "4")
      #expect(try frontend.perform(.read, [page(frontend.dataPage)]) == 0)
      #expect(try frontend.perform(.write, [page(frontend.dataPage)]) == -1)
      #expect(try frontend.perform(.writeBarrier, [page(frontend.dataPage)]) == -1)
      #expect(try frontend.perform(.flush, [page(frontend.dataPage)]) == -1)
      #expect(try frontend.perform(.flush) == 0)
      #expect(frontend.node("feature-discard") == "0")
      #expect(try frontend.discard(sector: 0, count: 8) == -2)
    }
  }

  @Test func aDiskOf4096ByteSectorsWantsWholeOnes() throws {
    try withBackend { frontend, backend in
      try frontend.connect(
        backend, try MemoryStorage(byteCount: 1 << 20), .colocated { $0.sectorSize = 4096 })
      #expect(frontend.node("sector-size") == "4096")
      #expect(frontend.node("sectors") == "2048")
      let half = Self.segment(frontend.dataPage, 0, 3)
      #expect(try frontend.perform(.write, sector: 8, [page(frontend.dataPage)]) == 0)
      #expect(try frontend.perform(.write, sector: 8, [half, half]) == 0)
      #expect(try frontend.perform(.write, sector: 4, [page(frontend.dataPage)]) == -1)
      #expect(try frontend.perform(.read, sector: 8, [half]) == -1)
      #expect(try frontend.discard(sector: 8, count: 4) == -1)
    }
  }

  @Test func aPoorBackendSaysNoToWhatItDoesNotOffer() throws {
    try withBackend { frontend, backend in
      let poor = BackendConfiguration.colocated {
        $0.flush = .off
        $0.barrier = .advertisedOnly
        $0.discard = .off
        $0.maxIndirectSegments = 0
        $0.maxRingPageOrder = 0
        $0.maxQueues = 1
        $0.persistentGrants = false
      }
      try frontend.connect(backend, try MemoryStorage(byteCount: 1 << 20), poor)
      #expect(frontend.node("feature-flush-cache") == "0")
      #expect(frontend.node("feature-barrier") == "1")
      #expect(frontend.node("feature-persistent") == "0")
      #expect(frontend.node("feature-max-indirect-segments") == nil)
      #expect(frontend.node("max-ring-page-order") == nil)
      #expect(frontend.node("multi-queue-max-queues") == nil)
      #expect(frontend.node("discard-granularity") == nil)
      #expect(try frontend.perform(.flush) == -2)
      #expect(try frontend.perform(.writeBarrier) == -2)
      #expect(try frontend.discard(sector: 0, count: 8) == -2)
      #expect(try Self.indirect()(frontend) == -2)
    }
  }

  @Test func anIndirectResponseCanCarryTheOuterOperation() throws {
    try withBackend { frontend, backend in
      try frontend.connect(
        backend, try MemoryStorage(byteCount: 1 << 20), .colocated { $0.echoIndirectOperation = true })
      let id = frontend.enqueueIndirect(
        .read, sector: 0, [page(frontend.dataPage)], page: frontend.dataPage + 1)
      #expect(try frontend.wait(for: id).operation == BlockOperation.indirect.rawValue)
    }
  }

  @Test(arguments: [1, 2, 11, 12, 511, 512, 513, 1024, 4095, 4096], [true, false])
  func indirectRequestsOfAnySizeCarryEverySegment(count: Int, persistent: Bool) throws {
    let frontend = TestFrontend(pageCount: 4096 + 64)
    let backend = try Backend(system: FakeDomain(xen: frontend.xen, domain: .dom0), logger: .quiet)
    defer { backend.stop() }
    let configuration = BackendConfiguration.colocated {
      $0.maxIndirectSegments = 4096
      $0.maxPersistentGrants = 1056
    }
    try frontend.connect(
      backend, try MemoryStorage(byteCount: 32 << 20), configuration, persistent: persistent)
    let list = frontend.dataPage
    let first = list + 8
    for index in 0..<count {
      frontend.xen.page(first + UInt32(index)).storeBytes(of: UInt64(index) &+ 7, as: UInt64.self)
    }
    let segments = (0..<count).map { page(first + UInt32($0)) }
    #expect(
      try frontend.wait(for: frontend.enqueueIndirect(.write, sector: 8, segments, page: list)).status == 0)
    for index in 0..<count { memset(frontend.xen.page(first + UInt32(index)), 0, Page.size) }
    #expect(
      try frontend.wait(
        for: frontend.enqueueIndirect(.read, sector: 8, segments.reversed(), page: list)
      ).status == 0)
    #expect(
      (0..<count).allSatisfy {
        frontend.xen.page(first + UInt32(count - 1 - $0)).load(as: UInt64.self) == UInt64($0) &+ 7
      })
  }

  @Test(arguments: 0...4) func ringsOfSeveralPagesHoldMoreRequests(order: Int) throws {
    try withBackend { frontend, backend in
      try frontend.connect(backend, try MemoryStorage(byteCount: 1 << 20), order: order)
      #expect(frontend.capacity == 32 << order)
      var ids: [UInt64] = []
      for index in 0..<frontend.capacity {
        let reference = frontend.dataPage + UInt32(index)
        ids.append(frontend.enqueue(.write, sector: UInt64(index), [Self.segment(reference, 0, 0)]))
      }
      for id in ids { #expect(try frontend.wait(for: id).status == 0) }
    }
  }
}
