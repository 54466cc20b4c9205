// SPDX-License-Identifier: Apache-2.0
//
// What each profile shows a frontend, node by node and answer by answer.

import Blkif
import Glibc
import Platform
import Testing
import Xen

@testable import XbdBack

@Suite struct ProfileTests {
  /// A profile, and a device of it in a fake Xen.
  private func with(
    _ profile: BackendProfile, _ change: (inout BackendConfiguration) -> Void = { _ in },
    byteCount: UInt64 = 1 << 20, _ body: (TestFrontend, BackendDevice) throws -> Void
  ) throws {
    try withBackend { frontend, backend in
      var configuration = BackendConfiguration.profile(profile)
      configuration.execution = .colocated
      change(&configuration)
      frontend.device = try backend.add(
        directory: TestFrontend.back, storage: try MemoryStorage(byteCount: byteCount),
        configuration: configuration)
      if let device = frontend.device { try body(frontend, device) }
    }
  }

  /// Publishes, and waits until a ring is attached.
  private func connect(_ frontend: TestFrontend, _ device: BackendDevice, order: Int = 0) throws {
    try frontend.publish(order: order)
    try #require(device.waitForQueues(1, milliseconds: 30_000), "\(frontend.errorNode ?? "")")
    try #require(eventually { frontend.backState == "4" })
    frontend.set("state", "4")
  }

  private static let all = [
    "max-ring-page-order", "max-ring-pages", "multi-queue-max-queues", "feature-max-indirect-segments",
    "feature-persistent", "feature-flush-cache", "feature-barrier", "feature-discard", "discard-granularity",
    "discard-alignment", "discard-secure", "sectors", "info", "sector-size", "physical-sector-size",
  ]
  private static func nodes(_ frontend: TestFrontend) -> [String: String] {
    all.reduce(into: [:]) { $0[$1] = frontend.node($1) }
  }

  /// §3's table: what is there before the frontend has done anything, in which state, and what is there at the end.
  static let published: [(BackendProfile, state: String, before: [String: String], after: [String: String])] =
    [
      (
        .linux6, "2",
        ["max-ring-page-order": "4", "multi-queue-max-queues": "4", "feature-max-indirect-segments": "256"],
        [
          "feature-persistent": "1", "feature-flush-cache": "1", "feature-barrier": "1",
          "feature-discard": "1",
          "discard-granularity": "4096", "discard-alignment": "0", "discard-secure": "0", "sectors": "2048",
          "info": "0",
          "sector-size": "512", "physical-sector-size": "512",
        ]
      ),
      (
        .linux3, "2", ["feature-max-indirect-segments": "32"],
        [
          "feature-persistent": "1", "feature-flush-cache": "1", "feature-barrier": "1",
          "feature-discard": "1",
          "discard-granularity": "4096", "discard-alignment": "0", "discard-secure": "0", "sectors": "2048",
          "info": "0",
          "sector-size": "512", "physical-sector-size": "512",
        ]
      ),
      (
        .qemu, "2",
        [
          "max-ring-page-order": "4", "feature-flush-cache": "1", "feature-discard": "1",
          "discard-granularity": "0",
          "discard-alignment": "0", "info": "0", "sector-size": "512", "sectors": "2048",
        ], [:]
      ),
      (
        .tapdisk, "2", ["max-ring-page-order": "3"],
        ["feature-barrier": "1", "sectors": "2048", "sector-size": "512", "info": "0"]
      ),
      (
        .freebsd, "2",
        [
          "max-ring-page-order": "4", "max-ring-pages": "16", "feature-flush-cache": "1",
          "feature-barrier": "1",
        ],
        ["sectors": "2048", "info": "0", "sector-size": "512"]
      ),
      (
        .netbsd, "4",
        [
          "feature-max-indirect-segments": "16", "feature-flush-cache": "1", "sectors": "2048", "info": "0",
          "sector-size": "512",
        ], [:]
      ),
      (
        .mirage, "1",
        ["feature-max-indirect-segments": "256", "sectors": "2048", "sector-size": "512", "info": "0"], [:]
      ),
      (.minimal, "2", [:], ["sectors": "2048"]),
    ]

  @Test func whatIsPublishedAndWhenIsWhatTheTableSays() throws {
    for (profile, state, before, after) in Self.published {
      try with(profile) { frontend, device in
        #expect(frontend.backState == state, "\(profile)")
        #expect(Self.nodes(frontend) == before, "\(profile)")
        try connect(frontend, device)
        #expect(Self.nodes(frontend) == before.merging(after) { $1 }, "\(profile)")
      }
    }
    #expect(Self.published.map(\.0) == BackendProfile.allCases)
  }

  @Test(arguments: BackendProfile.allCases)
  func itReadsAndWrites(profile: BackendProfile) throws {
    try with(profile) { frontend, device in
      try connect(frontend, device)
      for index in 0..<4096 {
        frontend.xen.page(1).storeBytes(of: UInt8(index & 0xFF), toByteOffset: index, as: UInt8.self)
      }
      #expect(try frontend.perform(.write, sector: 8, [page(1)]) == 0)
      #expect(try frontend.perform(.read, sector: 8, [page(2)]) == 0)
      #expect(memcmp(frontend.xen.page(1), frontend.xen.page(2), 4096) == 0)
    }
  }

  @Test(arguments: BackendProfile.allCases)
  func aMissingProtocolIsWhatEachTakesItFor(profile: BackendProfile) throws {
    try with(profile) { frontend, device in
      try frontend.publish()
      // Before anybody has looked: Initialising, without the node.
      let backend = BackendConfiguration.profile(profile)
      switch profile {
      case .linux6, .linux3, .tapdisk: #expect(backend.abiWhenMissing == .x86_32)
      case .mirage: #expect(backend.abiWhenMissing == nil)
      default: #expect(backend.abiWhenMissing == .native)
      }
      _ = device
    }
    // And the one that refuses says so.
    guard profile == .mirage else { return }
    try with(profile) { frontend, _ in
      frontend.xen.grant(0..<8)
      let port = try frontend.channels.bindUnbound(remote: .dom0)
      frontend.set("ring-ref", "0")
      frontend.set("event-channel", "\(port)")
      frontend.set("state", "3")
      #expect(eventually { frontend.backState == "5" })
      #expect(frontend.errorNode?.contains("protocol cannot be used: it is missing") == true)
    }
  }

  @Test func anOrderOfZeroMakesSomeLookForRingRef0() throws {
    for profile in BackendProfile.allCases {
      let looksForNumbered = profile == .linux6 || profile == .qemu
      for name in ["ring-ref", "ring-ref0"] {
        try with(profile) { frontend, device in
          frontend.xen.grant(0..<8)
          let port = try frontend.channels.bindUnbound(remote: .dom0)
          frontend.set("ring-page-order", "0")
          frontend.set(name, "0")
          frontend.set("event-channel", "\(port)")
          frontend.set("protocol", ABI.native.rawValue)
          frontend.set("state", "3")
          let isFound = looksForNumbered == (name == "ring-ref0")
          if isFound {
            #expect(device.waitForQueues(1, milliseconds: 30_000), "\(profile) \(name)")
          } else {
            #expect(eventually { frontend.errorNode != nil }, "\(profile) \(name)")
          }
        }
      }
    }
  }

  @Test(arguments: BackendProfile.allCases)
  func anUnknownOperationIsAnsweredInItsWay(profile: BackendProfile) throws {
    let expected = BackendConfiguration.profile(profile).unknownOperation
    try with(profile) { frontend, device in
      try connect(frontend, device)
      let id = frontend.enqueue { slot, id in
        slot.setDirect(.read, id: id, handle: 0, sector: 0, segmentCount: 0)
      }
      frontend.poke(77, at: 0)
      if expected == .unanswered {
        let next = frontend.enqueue(.read, sector: 0, [page(1)])
        #expect(try frontend.wait(for: next).status == 0)
        #expect(frontend.responses[id] == nil)
      } else {
        #expect(try frontend.wait(for: id).status == (expected == .error ? -1 : -2))
      }
    }
  }

  @Test func aWriteOfAReadOnlyDiskIsNotSupportedOnNetBSDAndAnErrorElsewhere() throws {
    for profile in BackendProfile.allCases where profile != .mirage {
      try with(profile, { $0.readOnly = true }) { frontend, device in
        try connect(frontend, device)
        #expect(try frontend.perform(.write, [page(1)]) == (profile == .netbsd ? -2 : -1), "\(profile)")
        #expect(frontend.node("info") == (profile == .minimal ? nil : "4"), "\(profile)")
      }
    }
  }

  @Test func netBSDAttachesWithANotificationAndNoChangeOfState() throws {
    try with(.netbsd) { frontend, device in
      frontend.set("state", "1")
      #expect(frontend.backState == "4")
      try connect(frontend, device)
      #expect(eventually { (try? frontend.channels.nextPending()) != nil })
      #expect(device.state == .connected)
    }
  }

  @Test func whoDoesNotReconnectIsGoneAfterClosed() throws {
    for profile in BackendProfile.allCases {
      try with(profile) { frontend, device in
        try connect(frontend, device)
        frontend.set("state", "5")
        #expect(eventually { frontend.backState == "5" })
        frontend.set("state", "6")
        #expect(eventually { frontend.backState == "6" })
        if profile == .netbsd || profile == .mirage {
          #expect(eventually { device.isRemoved }, "\(profile)")
        } else {
          frontend.set("state", "1")
          #expect(eventually { frontend.backState == "2" }, "\(profile)")
          try connect(frontend, device)
          #expect(try frontend.perform(.read, [page(1)]) == 0)
        }
      }
    }
  }

  @Test func aFeatureThatFailsIsWithdrawnOnLinux() throws {
    try with(.linux3) { frontend, device in
      try connect(frontend, device)
      #expect(try frontend.perform(.flush) == -2)
      #expect(eventually { frontend.node("feature-flush-cache") == "0" })
      #expect(frontend.node("feature-barrier") == "1" && frontend.backState == "4")
      #expect(try frontend.perform(.writeBarrier) == 0)
      #expect(try frontend.discard(sector: 0, count: 8) == -2)
      #expect(eventually { frontend.node("feature-discard") == "0" })
    }
  }

  @Test func aBadProducerIndexHaltsLinuxWithoutAWord() throws {
    try with(.linux6) { frontend, device in
      try connect(frontend, device)
      frontend.writeRequestProducer(5000)
      _ = device.colocatedQueue(0)?.run()
      #expect(eventually { device.colocatedQueue(0)?.queue.violation != nil })
      #expect(frontend.backState == "4" && frontend.errorNode == nil)
    }
    try with(.qemu) { frontend, device in
      try connect(frontend, device)
      frontend.writeRequestProducer(5000)
      _ = device.colocatedQueue(0)?.run()
      #expect(eventually { frontend.backState == "5" })
    }
  }

  @Test func freeBSDCountsInSectors() throws {
    try with(.freebsd, { $0.sectorSize = 4096 }) { frontend, device in
      try connect(frontend, device)
      #expect(frontend.node("sectors") == "256" && frontend.node("sector-size") == "4096")
      frontend.xen.page(1).storeBytes(of: 0x5A, as: UInt8.self)
      #expect(try frontend.perform(.write, sector: 255, [page(1)]) == 0)
      #expect(try frontend.perform(.write, sector: 256, [page(1)]) == -1)
      #expect(try frontend.perform(.write, sector: 1 << 62, [page(1)]) == -1)
      #expect(try frontend.perform(.read, sector: 255, [page(2)]) == 0)
      #expect(frontend.xen.page(2).load(as: UInt8.self) == 0x5A)
    }
    for profile in [BackendProfile.qemu, .netbsd, .minimal] {
      #expect(throws: XenError.self) { try with(profile, { $0.sectorSize = 4096 }) { _, _ in } }
    }
  }

  @Test func oneIndirectPageIsAllThatNetBSDAndMirageRead() throws {
    for profile in [BackendProfile.netbsd, .mirage] {
      let most = BackendConfiguration.profile(profile).maxIndirectSegments
      try with(profile, byteCount: 4 << 20) { frontend, device in
        try connect(frontend, device)
        let segments = (0..<most).map { page(UInt32(300 + $0)) }
        let id = frontend.enqueueIndirect(.write, sector: 0, segments, page: 1)
        #expect(try frontend.wait(for: id).status == 0, "\(profile)")
      }
    }
  }

  @Test func q12_unevenMiddlesAreServedAndSlowOnNetBSD() throws {
    for profile in BackendProfile.allCases {
      try with(profile) { frontend, device in
        try connect(frontend, device)
        for index in 0..<4096 * 3 {
          (frontend.xen.page(1) + index).storeBytes(of: UInt8(index % 251), as: UInt8.self)
        }
        // Each is one half of a page too short, first at its ends and then in its middle.
        let ends = [
          Segment(reference: GrantRef(1), firstSector: 4, lastSector: 7), page(2),
          Segment(reference: GrantRef(3), firstSector: 0, lastSector: 3),
        ]
        let middle = [page(1), Segment(reference: GrantRef(2), firstSector: 0, lastSector: 3), page(3)]
        #expect(try frontend.perform(.write, sector: 0, ends) == 0)
        #expect(device.statistics.unevenRequests == 0, "\(profile)")
        let began = MonotonicClock.nanoseconds()
        #expect(try frontend.perform(.write, sector: 64, middle) == 0)
        let took = MonotonicClock.nanoseconds() - began
        #expect(device.statistics.unevenRequests == (profile == .netbsd ? 1 : 0), "\(profile)")
        #expect(profile != .netbsd || took >= 500_000, "\(took) ns")
        #expect(try frontend.perform(.read, sector: 64, [page(5), page(6), page(7)]) == 0)
        #expect(memcmp(frontend.xen.page(5), frontend.xen.page(1), 4096 + 2048) == 0, "\(profile)")
        #expect(memcmp(frontend.xen.page(6) + 2048, frontend.xen.page(3), 4096) == 0, "\(profile)")
      }
    }
  }

  @Test func q13_aGrantThatIsInFlightTwiceIsMappedOnceMoreByLinux() throws {
    for profile in [BackendProfile.linux6, .linux3] {
      try with(profile) { frontend, device in
        try connect(frontend, device)
        for offset in 0..<4096 {
          frontend.xen.page(1).storeBytes(of: UInt8(offset % 251), toByteOffset: offset, as: UInt8.self)
        }
        #expect(try frontend.perform(.write, sector: 0, [page(1)]) == 0)
        let before = device.statistics
        #expect(before.persistentMisses == 1 && before.transientMaps == 0)
        // The same page of zeroes in every segment, as a frontend might write zeroes.
        #expect(try frontend.perform(.write, sector: 8, [page(1), page(1), page(1)]) == 0)
        let after = device.statistics
        #expect(after.grantsInUseAgain == 2 && after.transientMaps == 2, "\(after)")
        #expect(after.persistentGrants == 1)
        for block in [8, 16, 24] as [UInt64] {
          #expect(try frontend.perform(.read, sector: block, [page(4)]) == 0)
          #expect(memcmp(frontend.xen.page(4), frontend.xen.page(1), 4096) == 0)
        }
        // Alone again it is found where it was kept.
        #expect(try frontend.perform(.read, sector: 0, [page(1)]) == 0)
        #expect(device.statistics.grantsInUseAgain == 2)
        #expect(device.statistics.transientMaps == 2)
      }
    }
  }

  @Test func q25_netBSDLosesARequestWithEachRefusalAndIsDeadAfter32() throws {
    // MirageOS answers no refused request at all, so that its ring is full before it is dead.
    for profile in BackendProfile.allCases where profile != .mirage {
      try with(profile) { frontend, device in
        try connect(frontend, device)
        for count in 1..<32 {
          // Past the end, or an operation that it does not know.
          if count % 2 == 0 {
            _ = frontend.enqueue(.read, sector: 1 << 40, [page(1)])
          } else {
            _ = frontend.enqueue(.writeBarrier, sector: 0, [])
            frontend.poke(77, at: 0)
          }
          #expect(try frontend.perform(.read, sector: 0, [page(1)]) == 0, "\(profile)")
        }
        #expect(device.statistics.lostRequests == (profile == .netbsd ? 31 : 0), "\(profile)")
        _ = frontend.enqueue(.read, sector: 1 << 40, [page(1)])
        let last = frontend.enqueue(.read, sector: 0, [page(1)])
        guard profile == .netbsd else {
          #expect(try frontend.wait(for: last).status == 0, "\(profile)")
          return
        }
        try frontend.publishRequests()
        #expect(eventually { device.statistics.lostRequests == 32 || device.colocatedQueue(0)?.run() == nil })
        for _ in 0..<20 {
          _ = device.colocatedQueue(0)?.run()
          try frontend.collect()
        }
        #expect(frontend.responses[last] == nil)
      }
    }
  }

  @Test func aSizeThatChangesIsToldByLinuxAndQEMUOnly() throws {
    for profile in BackendProfile.allCases {
      try with(profile) { frontend, device in
        try connect(frontend, device)
        try device.resize(to: 2 << 20)
        let tells = profile == .linux6 || profile == .linux3 || profile == .qemu
        #expect(frontend.node("sectors") == (tells ? "4096" : "2048"), "\(profile)")
        #expect(frontend.backState == "4")
      }
    }
  }

  @Test func qemuRemovesTheNodesOfADetachedDevice() throws {
    try with(.qemu) { frontend, device in
      try connect(frontend, device)
      frontend.xen.write("\(TestFrontend.back)/online", "0")
      frontend.xen.write("\(TestFrontend.back)/state", "5")
      #expect(eventually { device.state == .closing })
      frontend.set("state", "6")
      #expect(
        eventually { frontend.backState == nil && frontend.xen.text("\(TestFrontend.front)/backend") == nil })
    }
  }
}
