// SPDX-License-Identifier: Apache-2.0
//
// A device whose backend goes and comes back, over a fake Xen: what is written, what is shared, what requests see.

import Blkif
import Platform
import Testing
import Xen

@testable import XbdFront

@Suite struct DeviceReconnectTests {
  static func connected(
    _ change: (inout FrontendOptions) -> Void = { _ in }, prepare: (FakeSystem) -> Void = { _ in }
  ) throws -> (FakeSystem, BlockDevice, Guarded<[OperationStatus]>) {
    let system = FakeSystem()
    prepare(system)
    system.answer(FakeSystem.honest)
    var options = system.options
    options.reconnects = true
    options.reconnectPause = .milliseconds(50)
    change(&options)
    let device = try system.connect(options)
    let ended = Guarded<[OperationStatus]>([])
    for queue in device.queues {
      queue.onCompletion = { [unowned queue] completion in
        ended.with { $0.append(completion.status) }
        queue.release(completion.operation)
      }
    }
    return (system, device, ended)
  }

  /// Answers what is in the ring that the nodes name, with success.
  static func answer(_ system: FakeSystem) {
    guard let reference = system.frontNodes["ring-ref"].flatMap({ UInt32($0) }),
      let page = system.grants.page(GrantRef(reference))
    else { return }
    let produced = page.load(fromByteOffset: 0, as: UInt32.self)
    for index in page.load(fromByteOffset: 8, as: UInt32.self)..<produced {
      let slot = page + 64 + Int(index & 31) * 112
      let operation = slot.load(as: UInt8.self)
      let id = slot.loadUnaligned(fromByteOffset: 8, as: UInt64.self)
      slot.storeBytes(of: id, as: UInt64.self)
      slot.storeBytes(of: UInt32(operation), toByteOffset: 8, as: UInt32.self)
    }
    page.storeBytes(of: produced, toByteOffset: 8, as: UInt32.self)
  }

  static func flush(_ device: BlockDevice) throws {
    let queue = device.queues[0]
    let operation = try #require(
      queue.begin(BlockRequest(command: .flush, byteOffset: 0, byteCount: 0), tag: 1))
    queue.submit(operation)
    queue.poll()
  }

  static func poll(_ device: BlockDevice, until what: String, _ condition: () -> Bool) {
    eventually(what) {
      for queue in device.queues { queue.poll() }
      return condition()
    }
  }

  @Test func aBackendThatDiesIsFollowedByTheNext() throws {
    let (system, device, ended) = try Self.connected()
    let descriptors = device.queues[0].descriptors
    let changes = Guarded<[Int32]>([])
    device.queues[0].onDescriptorsChange = { removed, added in changes.with { $0 += removed + added } }
    try Self.flush(device)
    system.tree.with { $0.hook = nil }
    device.backendDied("it was killed")
    Self.poll(device, until: "the frontend has closed") { system.ownStates.last == "6" }
    #expect(device.state == .reconnecting)
    #expect(system.grants.liveCount == 0)
    try Self.flush(device)
    // The toolstack makes the backend's nodes anew, and the next one starts, poorer than the last.
    system.tree[FakeSystem.back + "/max-ring-page-order"] = nil
    system.answer(FakeSystem.honest)
    system.setBackend("1")
    Self.poll(device, until: "connected again") { device.state == .connected }
    #expect(system.ownStates.suffix(5) == ["5", "6", "1", "3", "4"])
    Self.poll(device, until: "both flushes are answered") {
      Self.answer(system)
      return ended.with { $0 } == [.okay, .okay]
    }
    #expect(device.queues[0].descriptors != descriptors)
    #expect(changes.with { $0 } == [descriptors[1], device.queues[0].descriptors[1]])
    #expect(BlockDeviceTests.close(device))
    #expect(device.state == .closed)
  }

  @Test func aSuccessorThatIsAtTheDeadOnesStateIsTold() throws {
    let (system, device, ended) = try Self.connected()
    try Self.flush(device)
    system.tree.with { $0.hook = nil }
    device.backendDied("it was killed")
    Self.poll(device, until: "the frontend has closed") { system.ownStates.last == "6" }
    // Its 1 and 2 came and went before anybody looked.
    system.answer(FakeSystem.honest)
    system.setBackend("4")
    #expect(device.state == .reconnecting)
    device.backendReplaced()
    Self.poll(device, until: "connected again") { device.state == .connected }
    Self.poll(device, until: "the flush is answered") {
      Self.answer(system)
      return ended.with { $0 } == [.okay]
    }
    #expect(BlockDeviceTests.close(device))
  }

  @Test(arguments: ["6", "1", "2"])
  func aBackendThatLeavesWithoutAWordIsFollowed(state: String) throws {
    let (system, device, ended) = try Self.connected()
    try Self.flush(device)
    system.setBackend(state)
    Self.poll(device, until: "connected again") {
      system.ownStates.filter { $0 == "4" }.count == 2 && device.state == .connected
    }
    Self.poll(device, until: "the flush is answered") {
      Self.answer(system)
      return ended.with { $0 } == [.okay]
    }
    #expect(BlockDeviceTests.close(device))
  }

  @Test func aBackendThatClosesAnswersWhatItHasAndTheRestWaits() throws {
    let (system, device, ended) = try Self.connected()
    try Self.flush(device)
    system.setBackend("5")
    Self.poll(device, until: "reconnecting") { device.state == .reconnecting }
    try Self.flush(device)
    #expect(system.ownStates.last == "4")
    Self.answer(system)
    Self.poll(device, until: "the first is answered by the first") { ended.with { $0 } == [.okay] }
    Self.poll(device, until: "connected again") { device.state == .connected }
    Self.poll(device, until: "the second is answered by the second") {
      Self.answer(system)
      return ended.with { $0 } == [.okay, .okay]
    }
    #expect(BlockDeviceTests.close(device))
  }

  @Test func sectorsThatAreSmallerAfterwardsLeaveTheDeviceWithTheOldOnes() throws {
    let (system, device, ended) = try Self.connected { _ in
    } prepare: {
      $0.tree[FakeSystem.back + "/sector-size"] = "4096"
    }
    let sectors = device.features.sectorCount
    try Self.flush(device)
    system.tree[FakeSystem.back + "/sector-size"] = "512"
    system.tree[FakeSystem.back + "/sectors"] = "\(sectors + 7)"
    system.setBackend("6")
    Self.poll(device, until: "connected again") {
      system.ownStates.filter { $0 == "4" }.count == 2 && device.state == .connected
    }
    Self.poll(device, until: "the flush is answered") {
      Self.answer(system)
      return ended.with { $0 } == [.okay]
    }
    #expect(device.features.sectorSize == 4096)
    #expect(device.features.sectorCount == sectors)
    #expect(device.queues[0].parameters.sectorSize == 4096)
    #expect(BlockDeviceTests.close(device))
  }

  @Test func aBackendWithLargerSectorsThanRequestsWereMadeForIsNotConnectedTo() throws {
    let (system, device, ended) = try Self.connected()
    try Self.flush(device)
    system.tree[FakeSystem.back + "/sector-size"] = "4096"
    system.setBackend("6")
    Self.poll(device, until: "it was tried twice") { system.ownStates.filter { $0 == "3" }.count > 2 }
    #expect(system.ownStates.filter { $0 == "4" }.count == 1)
    system.tree[FakeSystem.back + "/sector-size"] = "512"
    Self.poll(device, until: "the flush is answered") {
      if device.state == .connected { Self.answer(system) }
      return ended.with { $0 } == [.okay]
    }
    #expect(BlockDeviceTests.close(device))
  }

  @Test func aDeviceThatIsUnpluggedCloses() throws {
    let (system, device, ended) = try Self.connected()
    try Self.flush(device)
    system.tree.commit([
      FakeSystem.back + "/online": Array("0".utf8), FakeSystem.back + "/state": Array("5".utf8),
    ])
    Self.poll(device, until: "the device is closing") { device.state == .closing }
    Self.answer(system)
    Self.poll(device, until: "the device is closed") { device.waitUntilClosed(milliseconds: 1) }
    #expect(ended.with { $0 } == [.okay])
    #expect(system.ownStates.last == "6")
  }

  @Test func patienceEndsWithBothStatesAndEverythingFails() throws {
    let (system, device, ended) = try Self.connected { $0.reconnectTimeout = .milliseconds(200) }
    try Self.flush(device)
    system.tree.with { $0.hook = nil }
    device.backendDied("it was killed")
    Self.poll(device, until: "the device failed") { device.waitUntilClosed(milliseconds: 1) }
    device.queues[0].poll()
    #expect(ended.with { $0 } == [.shutdown])
    guard case .failed(let error) = device.state else {
      Issue.record("\(device.state)")
      return
    }
    #expect(error.code == .timedOut)
    for part in ["no backend", "frontend 6 (Closed)", "backend 4 (Connected)"] {
      #expect(error.message.contains(part), "\(error)")
    }
  }

  @Test func nonsenseFromTheNextBackendIsWaitedOut() throws {
    let (system, device, ended) = try Self.connected()
    try Self.flush(device)
    system.tree[FakeSystem.back + "/sectors"] = "many"
    system.setBackend("6")
    Self.poll(device, until: "an attempt failed") { system.ownStates.filter { $0 == "6" }.count >= 2 }
    #expect(device.state == .reconnecting)
    system.tree[FakeSystem.back + "/sectors"] = "4096"
    Self.poll(device, until: "connected again") { device.state == .connected }
    Self.poll(device, until: "the flush is answered") {
      Self.answer(system)
      return ended.with { $0 } == [.okay]
    }
    #expect(device.queues[0].parameters.sectorCount == 4096)
    #expect(BlockDeviceTests.close(device))
  }

  @Test func aBackendThatBreaksTheProtocolIsFollowedByOneThatDoesNot() throws {
    let (system, device, ended) = try Self.connected()
    try Self.flush(device)
    let page = try #require(system.grants.page(GrantRef(8)))
    page.storeBytes(of: 5, toByteOffset: 8, as: UInt32.self)
    Self.poll(device, until: "it is found out") { ended.with { $0 } == [.ioError] }
    Self.poll(device, until: "connected again") {
      system.ownStates.filter { $0 == "4" }.count == 2 && device.state == .connected
    }
    try Self.flush(device)
    Self.poll(device, until: "the flush is answered") {
      Self.answer(system)
      return ended.with { $0 } == [.ioError, .okay]
    }
    #expect(BlockDeviceTests.close(device))
  }

  @Test(arguments: [true, false], [true, false])
  func aMigratedDomainSharesEverythingAnewWithWhomeverTheToolstackNames(
    reconnects: Bool, oldBackendFiresFirst: Bool
  ) throws {
    let (system, device, ended) = try Self.connected {
      $0.reconnects = reconnects
    } prepare: {
      $0.tree["/local/domain/7/domid"] = "7"
    }
    try Self.flush(device)
    let other = "/local/domain/3/backend/vbd/7/51728"
    // In one go, as the toolstack does it while the domain is not running.
    var changes: [String: [UInt8]?] = [:]
    for key in system.frontNodes.keys { changes[FakeSystem.front + "/" + key] = .some(nil) }
    for (key, value) in ["backend": other, "backend-id": "3", "state": "1", "virtual-device": "51728"] {
      changes[FakeSystem.front + "/" + key] = Array(value.utf8)
    }
    for (key, value) in ["state": "2", "sectors": "2048", "feature-flush-cache": "1"] {
      changes[other + "/" + key] = Array(value.utf8)
    }
    system.tree.with { state in
      state.hook = { tree, path in
        let answers = ["3": "4", "5": "5", "6": "6"]
        guard path == FakeSystem.front + "/state", let own = tree[path], let next = answers[own] else {
          return
        }
        if tree[other + "/state"] != next { tree[other + "/state"] = next }
      }
    }
    if oldBackendFiresFirst {
      changes["/local/domain/7/domid"] = Array("8".utf8)
      let silent = changes
      system.tree.with { state in
        for (path, value) in silent { state.nodes[path] = value }
      }
      system.tree.remove(FakeSystem.back)
    } else {
      system.tree.commit(changes)
    }
    Self.poll(device, until: "connected again") {
      device.state == .connected && system.frontNodes["state"] == "4"
    }
    Self.poll(device, until: "the flush is answered") {
      Self.answer(system)
      return ended.with { $0 } == [.okay]
    }
    #expect(system.grants.with { $0.domains } == [DomainID(0), DomainID(3)])
    // Told while everything of before was still open, and once.
    #expect(system.restores.with { $0 } == [1])
    #expect(BlockDeviceTests.close(device))
  }

  @Test(arguments: [true, false])
  func aChangedNumberOfTheDomainAloneSaysThatItWasRestored(reconnects: Bool) throws {
    let system = FakeSystem()
    system.answer(FakeSystem.honest)
    system.tree["/local/domain/7/domid"] = "7"
    var options = system.options
    options.reconnects = reconnects
    let device = try system.connect(options)
    let queue = device.queues[0]
    let ended = Guarded<[OperationStatus]>([])
    queue.onCompletion = { completion in
      ended.with { $0.append(completion.status) }
      queue.release(completion.operation)
    }
    try Self.flush(device)
    let ring = system.frontNodes["ring-ref"]
    // Watches fire for nodes that say the same as before; that alone is nothing.
    system.tree[FakeSystem.front + "/virtual-device"] = "51728"
    system.tree[FakeSystem.front + "/state"] = "4"
    // The state that the frontend itself had written is still there: only the number is another.
    system.tree.commit([
      "/local/domain/7/domid": Array("9".utf8), FakeSystem.front + "/state": Array("4".utf8),
    ])
    Self.poll(device, until: "connected again") {
      system.ownStates.suffix(5) == ["5", "6", "1", "3", "4"] && device.state == .connected
    }
    #expect(system.frontNodes["ring-ref"] != ring)
    Self.poll(device, until: "the flush is answered") {
      Self.answer(system)
      return ended.with { $0 } == [.okay]
    }
    #expect(BlockDeviceTests.close(device))
  }

  @Test func closingEndsTheWaiting() throws {
    let (system, device, ended) = try Self.connected()
    try Self.flush(device)
    system.tree.with { $0.hook = nil }
    device.backendDied("it was killed")
    Self.poll(device, until: "reconnecting") { device.state == .reconnecting }
    #expect(BlockDeviceTests.close(device))
    device.queues[0].poll()
    #expect(ended.with { $0 } == [.shutdown])
  }

  @Test func aDeviceThatIsDroppedClosesByItself() throws {
    let system = FakeSystem()
    system.answer(FakeSystem.honest)
    var options = system.options
    options.closeTimeout = .milliseconds(50)
    do { _ = try system.connect(options) }
    eventually("it is closed") { system.ownStates.last == "6" }
    eventually("nothing is left") {
      system.grants.liveCount == 0 && system.channels.with { $0[0].with { $0.ports.isEmpty } }
    }
  }

  @Test func aDeviceThatWasLeftConnectedIsReset() throws {
    let system = FakeSystem(backend: ["state": "4"])
    for (key, value) in ["state": "4", "ring-ref": "99", "event-channel": "5"] {
      system.tree[FakeSystem.front + "/" + key] = value
    }
    system.answer(FakeSystem.honest)
    let (frontend, backend) = try BlockDevice.reset("xvdb", on: system, logger: FakeSystem.logger)
    #expect(frontend == .initialising)
    // It has seen our Initialising, and is ready for the next.
    #expect(backend == .initWait)
    #expect(system.ownStates.suffix(3) == ["5", "6", "1"])
    #expect(system.frontNodes["ring-ref"] == nil && system.frontNodes["event-channel"] == nil)
    #expect(throws: XbdError.self) { try BlockDevice.reset("xvdz", on: system, logger: FakeSystem.logger) }
  }

  @Test func aBackendThatDoesNotLetGoIsNamed() throws {
    let system = FakeSystem(backend: ["state": "4"])
    system.tree[FakeSystem.front + "/state"] = "4"
    do throws(XbdError) {
      try BlockDevice.reset("xvdb", on: system, timeout: .milliseconds(50), logger: FakeSystem.logger)
      Issue.record("it was reset")
    } catch {
      #expect(error.code == .timedOut)
      #expect(error.message.contains("4 (Connected)"))
      #expect(error.message.contains(FakeSystem.back))
    }
  }
}
