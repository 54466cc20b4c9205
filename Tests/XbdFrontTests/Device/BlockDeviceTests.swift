// SPDX-License-Identifier: Apache-2.0
//
// A device from its nodes to its end, over a fake Xen.

import Blkif
import Platform
import Testing
import Xen

@testable import XbdFront

@Suite struct BlockDeviceTests {
  static func connected(
    _ backend: [String: String] = [:], _ change: (inout FrontendOptions) -> Void = { _ in }
  ) throws -> (FakeSystem, BlockDevice) {
    let system = FakeSystem(backend: backend)
    system.answer(FakeSystem.honest)
    var options = system.options
    change(&options)
    return (system, try system.connect(options))
  }
  static func failure(_ system: FakeSystem, _ options: FrontendOptions? = nil) -> XbdError? {
    do throws(XbdError) {
      _ = try system.connect(options)
      return nil
    } catch { return error }
  }

  @Test func aSinglePageRingIsWrittenAsTheHeaderWantsIt() throws {
    let (system, device) = try Self.connected()
    eventually("Connected is written") { system.frontNodes["state"] == "4" }
    let nodes = system.frontNodes
    #expect(nodes["ring-ref"] == "8")
    #expect(nodes["event-channel"] == "5")
    #expect(nodes["protocol"] == ABI.native.rawValue)
    #expect(nodes["feature-persistent"] == "1")
    #expect(nodes["state"] == "4")
    for key in ["ring-ref0", "ring-page-order", "num-ring-pages", "multi-queue-num-queues"] {
      #expect(nodes[key] == nil)
    }
    #expect(system.ownStates == ["1", "1", "3", "4"])
    #expect(device.state == .connected)
    #expect(device.queues.count == 1)
    #expect(device.features.sectorCount == 2048)
    device.close()
    device.queues[0].poll()
    #expect(Self.close(device))
  }

  /// Closes as the owner of the queues would.
  static func close(_ device: BlockDevice) -> Bool {
    device.close()
    for _ in 0..<30_000 {
      for queue in device.queues { queue.poll() }
      if device.waitUntilClosed(milliseconds: 1) { return true }
    }
    return false
  }

  @Test func aRingOfSeveralPagesNamesEachAndTheirOrder() throws {
    let system = FakeSystem()
    system.answer(FakeSystem.honest)
    var options = system.options
    options.ringPageOrder = 2
    options.grants = .perRequest
    let device = try system.connect(options)
    let nodes = system.frontNodes
    #expect(nodes["ring-ref"] == nil)
    #expect(
      ["ring-ref0", "ring-ref1", "ring-ref2", "ring-ref3"].compactMap { nodes[$0] } == [
        "8", "11", "14", "17",
      ])
    #expect(nodes["ring-ref4"] == nil)
    #expect(nodes["ring-page-order"] == "2")
    #expect(nodes["num-ring-pages"] == "4")
    #expect(nodes["feature-persistent"] == "0")
    #expect(Self.close(device))
  }

  @Test func severalQueuesHaveDirectoriesOfTheirOwn() throws {
    let system = FakeSystem(backend: ["multi-queue-max-queues": "3"])
    system.answer(FakeSystem.honest)
    var options = system.options
    options.queueCount = 8
    let device = try system.connect(options)
    let nodes = system.frontNodes
    #expect(device.queues.count == 3)
    #expect(nodes["multi-queue-num-queues"] == "3")
    #expect(nodes["ring-ref"] == nil && nodes["event-channel"] == nil)
    for index in 0..<3 {
      #expect(nodes["queue-\(index)/ring-ref"] != nil)
      #expect(nodes["queue-\(index)/event-channel"] != nil)
    }
    #expect(Self.close(device))
    #expect(system.channels.with { channels in channels.count } == 3)
  }

  /// A ring of one page and a chunk of 16 for the first queue leave three pages: enough for one more ring and chunk of
  /// one, and for no third queue.
  @Test func queuesThatFindNoPageAreNotOffered() throws {
    let system = FakeSystem(backend: ["multi-queue-max-queues": "8"])
    system.grants.with { $0.limit = 20 }
    system.answer(FakeSystem.honest)
    var options = system.options
    options.queueCount = 4
    options.poolPages = 256
    let device = try system.connect(options)
    #expect(device.queues.count == 2)
    let nodes = system.frontNodes
    #expect(nodes["multi-queue-num-queues"] == "2")
    #expect(nodes["queue-1/ring-ref"] != nil && nodes["queue-2/ring-ref"] == nil)
    #expect(Self.close(device))
    system.grants.with { $0.limit = 100_000 }
  }

  @Test func whatAnEarlierConnectionLeftIsRemoved() throws {
    let system = FakeSystem()
    for key in [
      "ring-ref0", "ring-ref1", "ring-page-order", "num-ring-pages", "queue-0/ring-ref",
      "queue-1/event-channel",
      "multi-queue-num-queues",
    ] {
      system.tree[FakeSystem.front + "/" + key] = "99"
    }
    system.tree.with { $0.conflicts = 3 }
    system.answer(FakeSystem.honest)
    let device = try system.connect()
    let nodes = system.frontNodes
    #expect(
      nodes.keys.filter {
        $0.hasPrefix("ring-") || $0.hasPrefix("queue-") || $0.hasPrefix("num-") || $0.hasPrefix("multi")
      } == ["ring-ref"])
    #expect(Self.close(device))
  }

  @Test func closingByUsGoesThroughFiveAndSix() throws {
    let (system, device) = try Self.connected()
    #expect(Self.close(device))
    #expect(system.ownStates.suffix(2) == ["5", "6"])
    #expect(device.state == .closed)
    #expect(
      device.queues[0].begin(BlockRequest(command: .read, byteOffset: 0, byteCount: 512), tag: 1) != nil)
  }

  @Test func aBackendThatClosesIsFollowedAfterTheLastRequest() throws {
    let (system, device) = try Self.connected()
    let changes = Guarded<[DeviceState]>([])
    device.observe(change: { state in changes.with { $0.append(state) } })
    let queue = device.queues[0]
    let operation = try #require(
      queue.begin(BlockRequest(command: .flush, byteOffset: 0, byteCount: 0), tag: 1))
    let ended = Guarded<[OperationStatus]>([])
    queue.onCompletion = { completion in ended.with { $0.append(completion.status) } }
    queue.submit(operation)
    queue.poll()
    system.setBackend("5")
    eventually("the device is closing") { device.state == .closing }
    queue.poll()
    #expect(ended.with { $0 } == [])
    #expect(system.ownStates.last == "4")
    // The backend answers the flush: FakeSystem has no ring of its own, so the response is written by hand.
    let page = try #require(system.grants.page(GrantRef(8)))
    let id = page.loadUnaligned(fromByteOffset: 64 + 8, as: UInt64.self)
    page.storeBytes(of: id, toByteOffset: 64, as: UInt64.self)
    page.storeBytes(of: 3, toByteOffset: 72, as: UInt32.self)
    page.storeBytes(of: 1, toByteOffset: 8, as: UInt32.self)
    eventually("the device is closed") {
      queue.poll()
      return device.waitUntilClosed(milliseconds: 1)
    }
    #expect(ended.with { $0 } == [.okay])
    #expect(system.ownStates.last == "6")
    #expect(changes.with { $0 } == [.closing, .closed])
  }

  @Test func aBackendThatVanishesFailsWhatIsInFlight() throws {
    let (system, device) = try Self.connected()
    let queue = device.queues[0]
    let ended = Guarded<[OperationStatus]>([])
    queue.onCompletion = { completion in ended.with { $0.append(completion.status) } }
    let operation = try #require(
      queue.begin(BlockRequest(command: .flush, byteOffset: 0, byteCount: 0), tag: 1))
    queue.submit(operation)
    queue.poll()
    system.tree.remove(FakeSystem.back)
    eventually("the device failed") {
      queue.poll()
      return device.waitUntilClosed(milliseconds: 1)
    }
    queue.poll()
    #expect(ended.with { $0 } == [.shutdown])
    guard case .failed(let error) = device.state else {
      Issue.record("\(device.state)")
      return
    }
    #expect(error.code == .backendGone)
  }

  @Test func aDirectoryTakenAwayByForceIsNotCreatedAgain() throws {
    let (system, device) = try Self.connected()
    system.tree.remove(FakeSystem.front)
    eventually("the device is gone") { device.waitUntilClosed(milliseconds: 1) }
    #expect(system.frontNodes.isEmpty)
    guard case .failed(let error) = device.state else {
      Issue.record("\(device.state)")
      return
    }
    #expect(error.message.contains("removed"))
  }

  @Test func aLostXenstoreFailsWhatIsInFlight() throws {
    let (system, device) = try Self.connected()
    let queue = device.queues[0]
    let ended = Guarded<[OperationStatus]>([])
    queue.onCompletion = { completion in ended.with { $0.append(completion.status) } }
    let operation = try #require(
      queue.begin(BlockRequest(command: .flush, byteOffset: 0, byteCount: 0), tag: 1))
    queue.submit(operation)
    queue.poll()
    system.tree.with { $0.fault = XenError(.disconnected, "xenstore is gone") }
    system.setBackend("4")
    eventually("the device is gone") { device.waitUntilClosed(milliseconds: 1) }
    queue.poll()
    #expect(ended.with { $0 } == [.shutdown])
    // Its event channel was let go of as well.
    #expect(system.channels.with { channels in channels[0].with { $0.ports.isEmpty } })
  }

  @Test func featuresThatComeLateAreSeen() throws {
    let system = FakeSystem(backend: ["feature-flush-cache": "0"])
    system.tree.with { state in
      state.hook = { tree, path in
        guard path == FakeSystem.front + "/state", tree[path] == "3" else { return }
        tree[FakeSystem.back + "/feature-barrier"] = "1"
        tree[FakeSystem.back + "/sectors"] = "4096"
        tree[FakeSystem.back + "/info"] = "4"
        tree[FakeSystem.back + "/state"] = "4"
      }
    }
    let device = try system.connect()
    let parameters = device.queues[0].parameters
    #expect(parameters.flush == .barrier)
    #expect(parameters.isReadOnly)
    #expect(device.features.sectorCount == 4096)
    system.answer(FakeSystem.honest)
    #expect(Self.close(device))
  }

  @Test func aNewSizeReachesQueueAndUserAndANonsensicalOneDoesNot() throws {
    let (system, device) = try Self.connected()
    let sizes = Guarded<[UInt64]>([])
    device.observe(change: { _ in }, resize: { size in sizes.with { $0.append(size) } })
    for sectors in ["4096", "x", "1024", "1024", "0"] {
      system.tree[FakeSystem.back + "/sectors"] = sectors
      system.setBackend("4")
      let expected = UInt64(sectors)
      if let expected {
        eventually("size \(sectors)") {
          device.queues[0].poll()
          return device.queues[0].parameters.sectorCount == expected
        }
      }
    }
    #expect(sizes.with { $0 } == [4096, 1024, 0])
    #expect(device.state == .connected)
    #expect(Self.close(device))
  }

  @Test(arguments: [
    ("sectors", "many"), ("sector-size", "513"), ("info", "-1"), ("feature-flush-cache", "yes"),
  ])
  func aMalformedNodeIsOneSentenceWithPathKeyAndValue(key: String, value: String) {
    let system = FakeSystem(backend: [key: value])
    system.answer(FakeSystem.honest)
    let error = Self.failure(system)
    #expect(error?.code == .malformed)
    for part in [FakeSystem.back, key, value] { #expect(error?.message.contains(part) == true) }
    #expect(error?.message.contains("\n") == false)
    #expect(system.ownStates.suffix(2) == ["5", "6"])
    #expect(system.grants.liveCount == 0)
    #expect(system.channels.with { channels in channels.allSatisfy { $0.with { $0.ports.isEmpty } } })
  }

  @Test(arguments: [
    ("1", "1 (Initialising)"), ("2", "2 (InitWait)"), ("3", "3 (Initialised)"), ("5", "5 (Closing)"),
  ])
  func aTimeoutNamesBothStates(state: String, name: String) {
    let system = FakeSystem(backend: ["state": state])
    var options = system.options
    options.handshakeTimeout = .milliseconds(80)
    options.initialisingGrace = .seconds(5)
    system.tree["/local/domain/0/error/backend/qdisk/7/51728/error"] = "2 no such file"
    let error = Self.failure(system, options)
    #expect(error?.code == .timedOut)
    #expect(error?.message.contains("backend \(name)") == true)
    #expect(error?.message.contains("frontend ") == true)
    #expect(error?.message.contains("2 no such file") == true)
    #expect(system.grants.liveCount == 0)
  }

  @Test func aBackendThatIsDeadMayDelayClosingOnceAndNotWithEachStep() throws {
    let (system, device) = try Self.connected { $0.closeTimeout = .seconds(2) }
    let queue = device.queues[0]
    queue.onCompletion = { _ in }
    queue.submit(
      try #require(queue.begin(BlockRequest(command: .flush, byteOffset: 0, byteCount: 0), tag: 1)))
    queue.poll()
    // It answers nothing and follows no state: a step each for what is in flight, Closing and Closed.
    system.tree.with { $0.hook = nil }
    let began = MonotonicClock.nanoseconds()
    #expect(Self.close(device))
    let took = MonotonicClock.nanoseconds() - began
    #expect(took >= 2_000_000_000 && took < 3_900_000_000, "\(took) ns")
    #expect(system.ownStates.suffix(2) == ["5", "6"])

    // Whoever has waited for it already gives it less.
    let (other, second) = try Self.connected { $0.closeTimeout = .seconds(20) }
    other.tree.with { $0.hook = nil }
    second.close(within: .milliseconds(100))
    let asked = MonotonicClock.nanoseconds()
    eventually("closed") {
      second.queues[0].poll()
      return second.waitUntilClosed(milliseconds: 1)
    }
    #expect(MonotonicClock.nanoseconds() - asked < 5_000_000_000)
  }

  @Test func regression_theShorterOfTwoTimesToCloseInCounts() throws {
    for limits in [[nil, 200], [200, 60_000]] as [[Int?]] {
      let (system, device) = try Self.connected { $0.closeTimeout = .seconds(60) }
      device.queues[0].onCompletion = { _ in }
      device.queues[0].submit(
        try #require(
          device.queues[0].begin(BlockRequest(command: .flush, byteOffset: 0, byteCount: 0), tag: 1)))
      device.queues[0].poll()
      system.tree.with { $0.hook = nil }
      let asked = MonotonicClock.nanoseconds()
      for limit in limits {
        if let limit { device.close(within: .milliseconds(limit)) } else { device.close() }
        _ = device.waitUntilClosed(milliseconds: 20)
      }
      eventually("closed") {
        device.queues[0].poll()
        return device.waitUntilClosed(milliseconds: 1)
      }
      #expect(MonotonicClock.nanoseconds() - asked < 20_000_000_000)
    }
  }

  @Test func aXenstoreThatIsGoneWithoutAWordIsAskedFor() throws {
    let (system, device) = try Self.connected()
    // No watch fires, as with libxenstore: whoever does not ask learns nothing.
    system.tree.with { $0.fault = XenError(.disconnected, "xenstore is gone") }
    eventually("the device is gone") {
      device.queues[0].poll()
      return device.waitUntilClosed(milliseconds: 1)
    }
    guard case .failed = device.state else {
      Issue.record("\(device.state)")
      return
    }
  }

  @Test func segmentsThatAreOfferedAfterTheRingIsPublishedAreUsed() throws {
    // At Initialising with everything, as MirageOS; and one that has thought better of it at Connected.
    for (state, early, late, expected) in [
      ("1", 256, 256, 40), ("2", 256, 20, 20), ("2", 20, 256, 40), ("2", 256, 0, 11),
    ] {
      let system = FakeSystem(backend: ["state": state, "feature-max-indirect-segments": String(early)])
      system.tree.with { tree in
        tree.hook = { tree, path in
          guard path == FakeSystem.front + "/state", let own = tree[path] else { return }
          if own == "3" {
            #expect(tree[FakeSystem.front + "/ring-ref"] != nil)
            tree[FakeSystem.back + "/feature-max-indirect-segments"] = String(late)
          }
          if let next = ["3": "4", "5": "5", "6": "6"][own] { tree[FakeSystem.back + "/state"] = next }
        }
      }
      var options = system.options
      options.maxSegments = 40
      options.poolPages = 200
      let device = try system.connect(options)
      #expect(device.transport.maxSegments == expected)
      #expect(device.queues[0].parameters.maxSegments == expected)
      #expect(Self.close(device))
    }
  }

  @Test func aBackendThatWaitsForUsIsMetWithDefaults() throws {
    let system = FakeSystem(backend: ["state": "1"])
    system.answer(["3": "4", "5": "5", "6": "6"])
    var options = system.options
    options.ringPageOrder = 2
    let device = try system.connect(options)
    #expect(system.frontNodes["ring-ref"] != nil)
    #expect(Self.close(device))
  }

  @Test func whatACrashLeftBehindIsClosedFirst() throws {
    let system = FakeSystem(backend: ["state": "4"])
    system.tree[FakeSystem.front + "/state"] = "4"
    system.answer(FakeSystem.honest)
    let device = try system.connect()
    // The device is given out a moment before its own state says so.
    eventually("Connected is written") { system.ownStates.count == 7 }
    #expect(system.ownStates == ["1", "4", "5", "6", "1", "3", "4"])
    #expect(Self.close(device))
  }

  @Test func aViolationIsToldAndClosesTheDevice() throws {
    let (system, device) = try Self.connected()
    let page = try #require(system.grants.page(GrantRef(8)))
    page.storeBytes(of: 5, toByteOffset: 8, as: UInt32.self)
    eventually("the device failed") {
      device.queues[0].poll()
      return device.waitUntilClosed(milliseconds: 1)
    }
    guard case .failed(let error) = device.state else {
      Issue.record("\(device.state)")
      return
    }
    #expect(error.code == .violation)
    #expect(error.message.contains(FakeSystem.front.suffix(16)))
    #expect(system.ownStates.suffix(2) == ["5", "6"])
  }

  @Test(
    arguments: [
      ("backend", nil), ("backend", ""), ("backend-id", nil), ("backend-id", "32752"),
      ("backend-id", "65536"),
      ("backend-id", " 0"), ("backend-id", "-1"),
    ] as [(String, String?)])
  func aDeviceWhoseBackendMakesNoSenseIsRefused(key: String, value: String?) {
    let system = FakeSystem()
    system.tree[FakeSystem.front + "/" + key] = value
    let error = Self.failure(system)
    #expect(error?.code == (key == "backend" ? .noDevice : .malformed))
    #expect(error?.message.contains("51728/\(key)") == true)
    #expect(system.ownStates == ["1"])
  }

  @Test(arguments: ["nonsense", "", "device/vbd/x", "99999999999"])
  func aNameThatIsNoDeviceIsRefused(name: String) throws {
    let store = try FakeXenStore(FakeTree(), domain: 7)
    #expect(throws: XbdError.self) { _ = try DeviceLocation(name, in: store) }
  }

  @Test func aDeviceConnectsAgainAndAgain() throws {
    let system = FakeSystem()
    system.answer(FakeSystem.honest)
    for _ in 0..<5 {
      let device = try system.connect()
      #expect(Self.close(device))
    }
    eventually("every page is taken back") { system.grants.liveCount == 0 }
  }
}
