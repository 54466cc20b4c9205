// SPDX-License-Identifier: Apache-2.0

import Blkif
import Glibc
import Platform
import Testing
import Xen

@testable import XbdBack

@Suite struct HandshakeTests {
  typealias Action = XenbusMachine.Action

  /// Every state of ours against every state of the frontend: what is done, and where we are then.
  @Test(arguments: XenbusState.allCases, XenbusState.allCases)
  func everyPairOfStatesHasADefinedOutcome(own: XenbusState, frontend: XenbusState) {
    for online in [true, false] {
      var machine = XenbusMachine(own: own)
      let actions = machine.frontend(.state(frontend), online: online)
      let end: [Action] = online ? [] : [.remove]
      switch (frontend, own) {
      case (.initialising, .initWait):
        #expect(actions.isEmpty)
      case (.initialising, .closed) where !online:
        #expect(actions == [.remove])
      case (.initialising, .closing) where !online:
        #expect(actions == [.disconnect, .announce, .remove])
      case (.initialising, _):
        #expect(actions == [.disconnect, .offer(.initWait)] && machine.own == .initWait)
      case (.initialised, .connected), (.connected, .connected), (.initialised, .closing),
        (.connected, .closing):
        #expect(actions.isEmpty && machine.own == own)
      case (.initialised, .initialising), (.connected, .initialising):
        #expect(actions == [.disconnect, .offer(.initWait), .connect])
      case (.initialised, _), (.connected, _):
        #expect(actions == [.disconnect, .connect])
      case (.closing, .closing), (.closing, .closed):
        #expect(actions.isEmpty && machine.own == own)
      case (.closing, _):
        #expect(actions == [.announce] && machine.own == .closing)
      case (.closed, .closed):
        #expect(actions == end)
      case (.closed, _):
        #expect(actions == [.disconnect, .announce] + end && machine.own == .closed)
      case (_, .closing), (_, .closed):
        #expect(actions.isEmpty && machine.own == own)
      default:
        guard case .complain = actions.first else {
          Issue.record("\(own) against \(frontend): \(actions)")
          return
        }
        #expect(machine.own == .closing)
      }
    }
  }

  @Test func whatAFrontendWroteIsShownWithoutWhatWouldWorkOnATerminal() {
    let state = FrontendState(node: Array("\u{1B}]0;title\u{7}\u{1B}[2J\nline".utf8))
    var machine = XenbusMachine()
    guard case .complain(let sentence) = machine.frontend(state, online: true).first else {
      Issue.record("\(state) was taken")
      return
    }
    #expect(sentence.unicodeScalars.allSatisfy { $0.value >= 0x20 })
    #expect(sentence.contains("title"))
  }

  @Test(arguments: ["", "abc", "99", "-1", "9", "4 ", " 4", "04", "4\0", "\u{FF}"])
  func aStateThatIsNoneIsRefusedWithASentence(text: String) {
    let state = FrontendState(node: Array(text.utf8))
    guard case .garbage = state else {
      Issue.record("\"\(text)\" was taken for \(state)")
      return
    }
    for own in XenbusState.allCases {
      var machine = XenbusMachine(own: own)
      let actions = machine.frontend(state, online: true)
      if own == .closing || own == .closed {
        #expect(actions.isEmpty)
      } else {
        guard case .complain = actions.first else {
          Issue.record("\(own): \(actions)")
          return
        }
      }
    }
  }

  @Test func aFrontendThatVanishesIsClosedAndOneThatWasNeverThereIsWaitedFor() {
    var machine = XenbusMachine()
    #expect(machine.frontend(.missing, online: true).isEmpty)
    _ = machine.frontend(.state(.initialising), online: true)
    #expect(machine.frontend(.missing, online: true) == [.disconnect, .announce])
    #expect(machine.own == .closed)
    #expect(machine.frontend(.state(.initialising), online: true) == [.disconnect, .offer(.initWait)])
    #expect(machine.frontend(.missing, online: false) == [.disconnect, .announce, .remove])
  }

  @Test func theToolstackClosesADeviceThroughItsFrontendIfThereIsOne() {
    for frontend in XenbusState.allCases {
      var machine = XenbusMachine(own: .connected)
      let actions = machine.toolstack(node: .state(.closing), frontend: .state(frontend), online: false)
      if FrontendState.state(frontend).isActive {
        #expect(actions.isEmpty && machine.own == .closing)
        #expect(machine.frontend(.state(.closed), online: false) == [.disconnect, .announce, .remove])
      } else {
        #expect(actions == [.disconnect, .announce, .remove])
      }
    }
    var gone = XenbusMachine(own: .connected)
    #expect(
      gone.toolstack(node: .missing, frontend: .state(.connected), online: true) == [.disconnect, .remove])
  }

  @Test(arguments: [XenbusState.initialising, .closed])
  func aDeviceThatIsToEndMeetsNoFrontendThatBeginsAgain(frontend: XenbusState) {
    var machine = XenbusMachine(own: .connected)
    machine.beginEnd()
    #expect(machine.own == .closing)
    #expect(machine.frontend(.state(.closing), online: true).isEmpty)
    // One that reconnects is at 1 a moment after 6; whoever ends the device may come to look later than that.
    #expect(machine.frontend(.state(frontend), online: true) == [.disconnect, .announce, .remove])
    #expect(machine.own == .closed)
  }

  // MARK: Over xenstore

  @Test func whatIsOfferedAppearsWhenLinuxPublishesIt() throws {
    try withBackend { frontend, backend in
      let storage = try MemoryStorage(byteCount: 1 << 20)
      _ = try backend.add(directory: TestFrontend.back, storage: storage, configuration: .colocated)
      #expect(frontend.backState == "2")
      #expect(frontend.node("max-ring-page-order") == "4")
      #expect(frontend.node("multi-queue-max-queues") == "4")
      #expect(frontend.node("feature-max-indirect-segments") == "256")
      #expect(frontend.node("sectors") == nil)
      #expect(frontend.node("feature-flush-cache") == nil)
      try frontend.publish()
      #expect(eventually { frontend.backState == "4" })
      let expected = [
        "sectors": "2048", "sector-size": "512", "physical-sector-size": "512", "info": "0",
        "feature-persistent": "1", "feature-flush-cache": "1", "feature-barrier": "1", "feature-discard": "1",
        "discard-granularity": "4096", "discard-alignment": "0", "discard-secure": "0",
      ]
      for (key, value) in expected { #expect(frontend.node(key) == value, "\(key)") }
    }
  }

  @Test func featuresCanBePublishedEarlyOrLate() throws {
    for var publication in [Publication.early, .late] {
      let isEarly = publication == .early
      publication.initWait.append(contentsOf: isEarly ? [.ringPages] : [])
      publication.connected.append(contentsOf: isEarly ? [] : [.ringPages])
      try withBackend { frontend, backend in
        _ = try backend.add(
          directory: TestFrontend.back, storage: try MemoryStorage(byteCount: 1 << 20),
          configuration: .colocated {
            $0.publication = publication
          })
        #expect((frontend.node("max-ring-pages") == "16") == isEarly)
        #expect((frontend.node("feature-flush-cache") == "1") == isEarly)
        try frontend.publish()
        #expect(eventually { frontend.backState == "4" })
        #expect(frontend.node("max-ring-pages") == "16")
        #expect(frontend.node("sectors") == "2048")
      }
    }
  }

  @Test func aFrontendMayGoStraightToConnected() throws {
    try withBackend { frontend, backend in
      try frontend.publish()
      frontend.set("state", "4")
      frontend.device = try backend.add(
        directory: TestFrontend.back, storage: try MemoryStorage(byteCount: 1 << 20),
        configuration: .colocated)
      #expect(frontend.backState == "4")
      #expect(try frontend.perform(.read, [page(frontend.dataPage)]) == 0)
    }
  }

  @Test func aFrontendReconnectsAsOftenAsItLikes() throws {
    try withBackend { frontend, backend in
      try frontend.connect(backend, try MemoryStorage(byteCount: 1 << 20))
      for round in 0..<20 {
        #expect(try frontend.perform(.write, [page(frontend.dataPage)]) == 0)
        let old = frontend.device?.colocatedQueue(0)
        if round % 2 == 0 {
          frontend.set("state", "5")
          #expect(eventually { frontend.backState == "5" })
          #expect(try frontend.perform(.write, [page(frontend.dataPage)]) == 0, "requests are served until 6")
          frontend.set("state", "6")
          #expect(eventually { frontend.backState == "6" })
        }
        frontend.set("state", "1")
        #expect(eventually { frontend.backState == "2" })
        #expect(old?.isAttached == false && old?.run() == false)
        #expect(frontend.xen.mappedPages == 0)
        try frontend.publish(order: 0, persistent: round % 3 == 0)
        #expect(eventually { frontend.backState == "4" })
      }
      #expect(frontend.device?.statistics.writes == 30)
    }
  }

  @Test func anOfflineDeviceEndsWhenItsFrontendCloses() throws {
    let frontend = TestFrontend()
    let ended = EndedDevices()
    let backend = try Backend(
      system: FakeDomain(xen: frontend.xen, domain: .dom0), logger: .quiet, onRemoval: { ended.add($0) })
    defer { backend.stop() }
    try frontend.connect(backend, try MemoryStorage(byteCount: 1 << 20))
    frontend.xen.write("\(TestFrontend.back)/online", "0")
    frontend.xen.write("\(TestFrontend.back)/state", "5")
    #expect(eventually { frontend.device?.state == .closing })
    frontend.set("state", "6")
    #expect(eventually { ended.count == 1 })
    #expect(frontend.backState == "6")
    #expect(frontend.device?.isRemoved == true && backend.allDevices.isEmpty)
    #expect(frontend.xen.mappedPages == 0)
  }

  @Test func directoriesThatVanishEndTheConnection() throws {
    try withBackend { frontend, backend in
      try frontend.connect(backend, try MemoryStorage(byteCount: 1 << 20))
      frontend.xen.remove(TestFrontend.front)
      #expect(eventually { frontend.backState == "6" })
      #expect(frontend.xen.mappedPages == 0)
      frontend.xen.remove(TestFrontend.back)
      #expect(eventually { frontend.device?.isRemoved == true })
      #expect(frontend.node("state") == nil, "nothing is written into a directory that is gone")
    }
  }

  /// The toolstack may take it away while the backend lets go of a ring.
  @Test func regression_aDirectoryThatIsGoneIsNotMadeAgain() throws {
    for isConnected in [true, false] {
      try withBackend { frontend, backend in
        let storage = try MemoryStorage(byteCount: 1 << 20)
        if isConnected {
          try frontend.connect(backend, storage)
        } else {
          frontend.device = try backend.add(directory: TestFrontend.back, storage: storage)
        }
        let device = try #require(frontend.device)
        backend.control.withLock {
          frontend.xen.remove(TestFrontend.back)
          device.announce()
        }
        #expect(device.isRemoved)
        #expect(frontend.node("state") == nil)
        #expect(frontend.xen.mappedPages == 0)
        #expect(backend.allDevices.isEmpty)
      }
    }
  }

  /// A domain that migrates before its frontend has connected (LoopbackToolstack.migrate).
  @Test func regression_aDeviceThatIsMadeAnewIsOfferedAnew() throws {
    try withBackend { frontend, backend in
      let device = try backend.add(
        directory: TestFrontend.back, storage: try MemoryStorage(byteCount: 1 << 20))
      #expect(frontend.backState == "2" && frontend.node("max-ring-page-order") != nil)
      for _ in 0..<2 {
        frontend.xen.remove("\(TestFrontend.back)/max-ring-page-order")
        frontend.xen.write("\(TestFrontend.back)/state", "1")
        #expect(eventually { frontend.backState == "2" })
        #expect(frontend.node("max-ring-page-order") != nil)
      }
      #expect(device.state == .initWait)
    }
    // One that offers at Initialising, and stays there.
    try withBackend { frontend, backend in
      var mirage = BackendConfiguration.profile(.mirage)
      mirage.execution = .colocated
      let device = try backend.add(
        directory: TestFrontend.back, storage: try MemoryStorage(byteCount: 1 << 20), configuration: mirage)
      #expect(frontend.backState == "1" && frontend.node("sectors") != nil)
      for key in ["feature-max-indirect-segments", "sectors", "sector-size", "info"] {
        frontend.xen.remove("\(TestFrontend.back)/\(key)")
      }
      frontend.xen.write("\(TestFrontend.back)/state", "1")
      #expect(eventually { frontend.node("sectors") != nil && frontend.node("info") != nil })
      #expect(device.state == .initialising)
    }
    for own in [XenbusState.initWait, .connected, .closing, .closed] {
      var machine = XenbusMachine(own: own)
      let actions = machine.toolstack(
        node: .state(.initialising), frontend: .state(.initialising), online: true)
      #expect(actions == [.disconnect, .disconnect, .offer(.initWait)])
      #expect(
        machine.toolstack(node: .state(.initWait), frontend: .state(.initialising), online: true).isEmpty)
    }
  }

  static let malformed: [(String, String?)] = [
    ("ring-ref", nil), ("ring-ref", ""), ("ring-ref", "x"), ("ring-ref", "-1"), ("ring-ref", "4294967296"),
    ("ring-ref", "1000000"), ("event-channel", nil), ("event-channel", "0"), ("event-channel", "77"),
    ("event-channel", "1x"), ("protocol", "z80-abi"), ("protocol", ""), ("feature-persistent", "2"),
    ("feature-persistent", "yes"), ("ring-page-order", "5"), ("ring-page-order", "4294967295"),
    ("ring-page-order", "1"), ("num-ring-pages", "3"), ("num-ring-pages", "0"), ("num-ring-pages", "32"),
    ("multi-queue-num-queues", "0"), ("multi-queue-num-queues", "5"), ("multi-queue-num-queues", "2"),
  ]

  @Test(arguments: 0..<malformed.count) func aMalformedFrontendNodeIsNamedAndTheFrontendCanTryAgain(
    index: Int
  ) throws {
    let (key, value) = Self.malformed[index]
    try withBackend { frontend, backend in
      frontend.device = try backend.add(
        directory: TestFrontend.back, storage: try MemoryStorage(byteCount: 1 << 20),
        configuration: .colocated)
      try frontend.publish()
      #expect(eventually { frontend.backState == "4" })
      frontend.set("state", "6")
      #expect(eventually { frontend.backState == "6" })
      frontend.set("state", "1")
      #expect(eventually { frontend.backState == "2" })
      try frontend.publish()
      #expect(eventually { frontend.backState == "4" })
      frontend.set("state", "1")
      #expect(eventually { frontend.backState == "2" })

      let node = "\(TestFrontend.front)/\(key)"
      let port = try frontend.channels.bindUnbound(remote: .dom0)
      frontend.set("event-channel", String(port.rawValue))
      if let value { frontend.xen.write(node, value) } else { frontend.xen.remove(node) }
      frontend.set("state", "3")
      #expect(eventually { frontend.backState == "5" })
      let sentence = try #require(frontend.errorNode)
      #expect(sentence.hasPrefix("22 cannot connect: "), "\(sentence)")
      #expect(frontend.xen.mappedPages == 0)

      frontend.xen.remove(node)
      for leftover in ["ring-page-order", "num-ring-pages", "multi-queue-num-queues"] {
        frontend.xen.remove("\(TestFrontend.front)/\(leftover)")
      }
      frontend.set("state", "6")
      #expect(eventually { frontend.backState == "6" })
      frontend.set("state", "1")
      #expect(eventually { frontend.backState == "2" })
      try frontend.publish()
      #expect(eventually { frontend.backState == "4" })
      #expect(frontend.errorNode == nil)
    }
  }

  @Test func severalQueuesEachHaveTheirRing() throws {
    try withBackend { frontend, backend in
      frontend.device = try backend.add(
        directory: TestFrontend.back, storage: try MemoryStorage(byteCount: 1 << 20),
        configuration: .colocated)
      try frontend.publish()
      frontend.set("state", "1")
      #expect(eventually { frontend.backState == "2" })
      for queue in 0..<3 {
        let port = try frontend.channels.bindUnbound(remote: .dom0)
        let ring = frontend.xen.page(UInt32(queue))
        _ = FrontRing(pages: ring, pageCount: 1)
        frontend.set("queue-\(queue)/ring-ref", String(queue))
        frontend.set("queue-\(queue)/event-channel", String(port.rawValue))
      }
      frontend.set("multi-queue-num-queues", "3")
      frontend.set("state", "3")
      #expect(eventually { frontend.backState == "4" })
      #expect(frontend.device?.queueCount == 3)
      #expect(frontend.device?.colocatedQueue(2) != nil && frontend.device?.colocatedQueue(3) == nil)
      #expect(frontend.xen.mappedPages == 3)
    }
  }

  @Test func aResizeIsPublishedWithTheStateAgain() throws {
    try withBackend { frontend, backend in
      let scratch = try ScratchDirectory()
      try makeImage(scratch.file("disk"), byteCount: 1 << 20)
      try frontend.connect(backend, try FileStorage(path: scratch.file("disk")))
      let device = try #require(frontend.device)
      #expect(try frontend.perform(.read, sector: 2048, [page(frontend.dataPage)]) == -1)
      try device.resize(to: 2 << 20)
      #expect(frontend.node("sectors") == "4096" && frontend.backState == "4")
      #expect(try frontend.perform(.write, sector: 2048, [page(frontend.dataPage)]) == 0)
      #expect(truncate(scratch.file("disk"), 1 << 19) == 0)
      #expect(try frontend.perform(.read, sector: 2048, [page(frontend.dataPage)]) == -1)
      try device.refreshSize()
      #expect(frontend.node("sectors") == "1024")
      #expect(throws: StorageError.self) { try device.resize(to: 1000) }
      #expect(try frontend.perform(.read, sector: 1016, [page(frontend.dataPage)]) == 0)
    }
  }

  @Test func aDeviceWithoutNodesOrWithASillyConfigurationIsRefused() throws {
    try withBackend { frontend, backend in
      let storage = try MemoryStorage(byteCount: 1 << 20)
      #expect { try backend.add(directory: "/local/domain/0/backend/vbd/9/1", storage: storage) } throws: {
        ($0 as? XenError)?.code == .notFound
      }
      for change: (inout BackendConfiguration) -> Void in [
        { $0.sectorSize = 520 }, { $0.maxIndirectSegments = 4097 }, { $0.maxRingPageOrder = 5 },
        { $0.maxQueues = 0 }, { $0.physicalSectorSize = 256 }, { $0.maxPersistentGrants = -1 },
      ] {
        #expect {
          try backend.add(directory: TestFrontend.back, storage: storage, configuration: .colocated(change))
        } throws: { ($0 as? XenError)?.code == .invalid }
      }
      #expect(backend.allDevices.isEmpty)
    }
  }

  @Test func stoppingWaitsForTheFrontendAndThenDoesWithout() throws {
    try withBackend { frontend, backend in
      try frontend.connect(backend, try MemoryStorage(byteCount: 1 << 20))
      #expect(frontend.device?.close(waiting: 50) == false)
      #expect(frontend.backState == "6")
      #expect(frontend.xen.mappedPages == 0)
    }
  }

  @Test func withoutXenstoreNoFrontendIsWaitedFor() throws {
    try withBackend { frontend, backend in
      try frontend.connect(backend, try MemoryStorage(byteCount: 1 << 20))
      let begin = MonotonicClock.nanoseconds()
      frontend.xen.endStore()
      #expect(frontend.device?.close(waiting: 120_000) == false)
      #expect(MonotonicClock.nanoseconds() - begin < 60_000_000_000)
      #expect(frontend.xen.mappedPages == 0)
    }
  }
}

/// Collects what a backend reports as over.
final class EndedDevices: @unchecked Sendable {
  private let monitor = Monitor()
  private var devices: [BackendDevice] = []
  func add(_ device: BackendDevice) { monitor.withLock { devices.append(device) } }
  var count: Int { monitor.withLock { devices.count } }
}
