// SPDX-License-Identifier: Apache-2.0
//
// A queue whose backend goes and is followed by another (case 44 and issue 5, "reconnect").

import Blkif
import Testing

@testable import XbdFront

@Suite struct ReconnectTests {
  @Test(arguments: CopyMode.allCases, [512, 4096])
  func everyByteSurvivesBackendsThatComeAndGo(copy: CopyMode, sectorSize: Int) throws {
    for seed in 0..<12 as Range<UInt64> {
      let setup = QueueSetup(
        copy: copy, grants: seed % 4 == 0 ? .perRequest : .persistent, maxSegments: 32, ringPageOrder: 0,
        sectorSize: sectorSize, poolPages: 64, isInline: seed % 2 == 0,
        discard: DiscardLimits(granularity: 8192, alignment: 4096, secure: false),
        trusted: seed % 3 != 0, keepsWrites: seed % 5 != 0)
      let run = try ModelRun(setup, seed: seed + 77)
      run.rarityOfLoss = 10
      // Without private copies of writes, a backend that scribbles is believed.
      run.spoilsPages = setup.keepsWrites
      run.go(operations: 250)
      #expect(run.failed || run.losses > 5)
      if run.failed { return }
    }
  }

  @Test func whatIsInFlightIsAskedAgainOfTheNextBackendAndReportedOnce() throws {
    let harness = try QueueHarness(QueueSetup(isInline: false, keepsWrites: true))
    harness.backend.judge = { _ in .hold }
    let data = [UInt8](repeating: 0x5A, count: 300_000)
    harness.submit(.write, 4096, 300_000, data: data)
    harness.submit(.read, 0, 512)
    harness.settle()
    #expect(!harness.backend.held.isEmpty)
    harness.loseBackend()
    harness.settle()
    #expect(harness.completions.isEmpty)
    #expect(harness.sharing.liveCount == 0, "nothing stays shared with a backend that is gone")
    var poorer = harness.setup
    poorer.maxSegments = 11
    poorer.poolPages = 40
    harness.backend.judge = { _ in .serve }
    try harness.reconnect(poorer)
    harness.settle()
    #expect(harness.backend.log.allSatisfy { $0.segments.count <= 11 })
    #expect(harness.takeStatuses() == [.okay, .okay])
    #expect(sameBytes(Array(harness.diskBytes[4096..<304_096]), data))
    #expect(harness.queue.counters.resubmissions == 2)
    #expect(harness.queue.counters.reconnections == 1)
  }

  /// The lost backend may still carry out what it was asked: it finds that, and nothing of what it was not.
  @Test(arguments: GrantMode.allCases)
  func whatIsGivenBackIsEmptyButForWhatMayStillBeCarriedOut(grants: GrantMode) throws {
    let harness = try QueueHarness(QueueSetup(grants: grants, isInline: false))
    harness.backend.judge = { _ in .hold }
    harness.submit(.write, 0, 4096, data: [UInt8](repeating: 0xAA, count: 4096))
    harness.settle()
    let begun = try #require(harness.begin(.write, 8192, 4096))
    harness.sharing.overwrite(0xAA)
    harness.loseBackend()
    #expect(harness.sharing.liveCount == 0)
    let left = harness.sharing.with { $0.bytesAtEnd.values.filter { $0 != 0 } }
    #expect(left == [0xAA])
    harness.queue.cancel(begun)
  }

  @Test func writesComeAgainAsTheyWereAskedWhateverTheLostBackendDidToItsPages() throws {
    let harness = try QueueHarness(QueueSetup(isInline: false, keepsWrites: true))
    harness.backend.judge = { _ in .hold }
    let data = (0..<70_000).map { UInt8(truncatingIfNeeded: $0 * 7) }
    harness.submit(.write, 1000, 70_000, data: data)
    harness.submit(.write, 512 * 400, 4096, data: [UInt8](repeating: 1, count: 4096))
    harness.settle()
    harness.sharing.overwrite(0xEE)
    harness.loseBackend()
    harness.backend.judge = { _ in .serve }
    try harness.reconnect()
    harness.settle()
    #expect(harness.takeStatuses() == [.okay, .okay])
    #expect(sameBytes(Array(harness.diskBytes[1000..<71_000]), data))
    #expect(harness.diskBytes[512 * 400..<512 * 400 + 4096].allSatisfy { $0 == 1 })
  }

  @Test func aFlushComesBehindTheWritesThatAreAskedAgain() throws {
    let harness = try QueueHarness(QueueSetup(isInline: false, keepsWrites: true))
    harness.backend.judge = { _ in .hold }
    harness.submit(.flush)
    harness.submit(.write, 0, 512, data: [UInt8](repeating: 1, count: 512))
    harness.submit(.write, 512, 512, fua: true, data: [UInt8](repeating: 2, count: 512))
    harness.settle()
    harness.loseBackend()
    harness.backend.judge = { _ in .serve }
    try harness.reconnect()
    harness.settle()
    #expect(harness.backend.log.map(\.operation) == [1, 1, 3, 3])
    #expect(harness.takeStatuses() == [.okay, .okay, .okay])
  }

  @Test func aDurableWriteWhoseFlushWasLostIsWrittenAgain() throws {
    let harness = try QueueHarness(QueueSetup(isInline: false, keepsWrites: true))
    harness.backend.judge = { $0.operation == 3 ? .hold : .serve }
    harness.submit(.write, 0, 512, fua: true, data: [UInt8](repeating: 2, count: 512))
    harness.settle()
    #expect(harness.backend.held.map(\.operation) == [3])
    harness.loseBackend()
    // What it had not flushed is gone.
    harness.backend.disk[0] = 99
    harness.backend.judge = { _ in .serve }
    try harness.reconnect()
    harness.settle()
    #expect(harness.backend.log.map(\.operation) == [1, 3])
    #expect(harness.diskBytes[0] == 2)
  }

  @Test func aReadThatCompletedKeepsItsBytesWhenItsPagesGo() throws {
    let harness = try QueueHarness(QueueSetup(isInline: false))
    _ = harness.backend.disk.update(fromContentsOf: Pattern.bytes[..<harness.backend.disk.count])
    let operation = try #require(harness.submit(.read, 700, 20_000))
    harness.settle()
    #expect(harness.completions.count == 1)
    harness.loseBackend()
    #expect(sameBytes(harness.contents(operation), Array(Pattern.bytes[700..<20_700])))
    try harness.reconnect()
    #expect(sameBytes(harness.contents(operation), Array(Pattern.bytes[700..<20_700])))
    harness.queue.release(operation)
    #expect(harness.status(.read, 0, 512) == .okay)
  }

  @Test func requestsThatComeInTheGapWaitAndCostNoTurns() throws {
    let harness = try QueueHarness(QueueSetup(isInline: false, keepsWrites: true))
    harness.loseBackend()
    for index in 0..<50 as Range<UInt64> {
      harness.submit(.write, index * 512, 512, data: [UInt8](repeating: 3, count: 512))
    }
    harness.settle()
    #expect(harness.completions.isEmpty)
    try harness.reconnect()
    harness.settle()
    #expect(harness.takeStatuses() == [OperationStatus](repeating: .okay, count: 50))
  }

  @Test func whenPatienceEndsWhatWaitsFailsAndSoDoesWhatComes() throws {
    let harness = try QueueHarness(QueueSetup(isInline: false, keepsWrites: true))
    harness.backend.judge = { _ in .hold }
    harness.submit(.read, 0, 512)
    harness.settle()
    harness.loseBackend()
    harness.submit(.write, 0, 512, data: [UInt8](repeating: 3, count: 512))
    harness.settle()
    #expect(harness.completions.isEmpty)
    harness.control.tell {
      $0.refusal = .shutdown
      $0.failEverything = .shutdown
    }
    harness.settle()
    #expect(harness.takeStatuses() == [.shutdown, .shutdown])
    #expect(harness.status(.flush) == .shutdown)
    #expect(harness.queue.unfinishedOperations == 0)
  }

  @Test func whatCannotBeDoneOnTheNextDeviceFails() throws {
    let harness = try QueueHarness(QueueSetup(isInline: false, keepsWrites: true))
    harness.backend.judge = { _ in .hold }
    harness.submit(.read, 1 << 20, 4096)
    harness.submit(.write, 0, 512, data: [UInt8](repeating: 1, count: 512))
    harness.settle()
    harness.loseBackend()
    harness.backend.judge = { _ in .serve }
    var other = harness.setup
    other.diskBytes = 1 << 20
    other.isReadOnly = true
    try harness.reconnect(other)
    harness.settle()
    #expect(harness.takeStatuses() == [.ioError, .readOnly])
    #expect(harness.status(.read, 0, 512) == .okay)
  }

  @Test func whatIsHeldIsAnsweredAndNothingNewGoesIn() throws {
    let harness = try QueueHarness(QueueSetup(isInline: false))
    harness.backend.judge = { _ in .hold }
    harness.submit(.read, 0, 512)
    harness.settle()
    harness.control.drain(refusing: nil)
    harness.submit(.read, 512, 512)
    harness.settle()
    #expect(harness.backend.held.count == 1)
    #expect(harness.reports.drained == 0)
    harness.backend.answerHeld()
    harness.settle()
    #expect(harness.reports.drained == 1)
    #expect(harness.completions.count == 1)
    harness.loseBackend()
    harness.backend.judge = { _ in .serve }
    try harness.reconnect()
    harness.settle()
    #expect(harness.takeStatuses() == [.okay, .okay])
  }

  @Test func aBrokenQueueWorksAgainWithAnotherBackend() throws {
    let harness = try QueueHarness(QueueSetup(isInline: false, keepsWrites: true))
    harness.backend.judge = { _ in .hold }
    harness.submit(.read, 0, 512)
    harness.settle()
    harness.backend.setIndex(.responseProducer, 99)
    harness.channels.raise()
    harness.settle()
    #expect(harness.takeStatuses() == [.ioError])
    #expect(harness.reports.violations.count == 1)
    harness.loseBackend()
    harness.submit(.read, 0, 512)
    harness.backend.judge = { _ in .serve }
    try harness.reconnect()
    harness.settle()
    #expect(harness.takeStatuses() == [.okay])
  }

  /// Turns both until nothing moves: one may have woken the other in the turn in which it fell asleep itself.
  static func settle(_ one: QueueHarness, _ other: QueueHarness) {
    var quiet = 0
    for _ in 0..<100_000 {
      let moved = [one.turn(), other.turn()]
      quiet = moved.contains(true) ? 0 : quiet + 1
      if quiet == 4 { return }
    }
    Issue.record("the queues never come to rest")
  }

  @Test(arguments: [512, 4096])
  func aQueueThatGetsNoRingWorksThroughAnother(sectorSize: Int) throws {
    let gate = WriteGate()
    let setup = QueueSetup(sectorSize: sectorSize, isInline: false, keepsWrites: true)
    let host = try QueueHarness(setup, index: 0, gate: gate)
    let guest = try QueueHarness(setup, index: 1, gate: gate, disk: host.backend.disk)
    guest.backend.judge = { _ in .hold }
    let data = (0..<200_000).map { UInt8(truncatingIfNeeded: $0 * 13) }
    guest.submit(.write, 8192, 200_000, data: data)
    guest.submit(.flush)
    Self.settle(host, guest)
    for harness in [host, guest] { harness.loseBackend() }
    // These come while there is no backend at all.
    guest.submit(.write, 777, 100, data: Array(data[..<100]))
    guest.submit(.writeZeroes, 8192 + 50_000, 10_000)
    Self.settle(host, guest)
    try host.reconnect()
    guest.control.tell { $0.relay = Relay(host: host.control, parameters: setup.parameters) }
    Self.settle(host, guest)
    #expect(guest.takeStatuses() == [.okay, .okay, .okay, .okay])
    #expect(host.completions.isEmpty)
    #expect(host.queue.unfinishedOperations == 0)
    var expected = data
    expected.replaceSubrange(50_000..<60_000, with: repeatElement(0, count: 10_000))
    #expect(sameBytes(Array(host.diskBytes[8192..<208_192]), expected))
    #expect(sameBytes(Array(host.diskBytes[777..<877]), Array(data[..<100])))

    // The other one's ring goes while it has guests; then both have one again.
    host.backend.judge = { _ in .hold }
    let read = try #require(guest.submit(.read, 8192, 200_000))
    host.submit(.read, 0, 512)
    Self.settle(host, guest)
    for harness in [host, guest] { harness.loseBackend() }
    host.backend.judge = { _ in .serve }
    try host.reconnect()
    guest.backend.judge = { _ in .serve }
    try guest.reconnect()
    Self.settle(host, guest)
    #expect(host.takeStatuses() == [.okay])
    #expect(guest.completions.map(\.status) == [.okay])
    #expect(sameBytes(guest.contents(read), expected))
    guest.queue.release(read)
    #expect(guest.status(.write, 0, 4096) == .okay)
    #expect(guest.backend.log.count == 1)
    #expect(guest.backend.complaints.isEmpty && host.backend.complaints.isEmpty)
  }

  /// Two queues of a device whose backend came back with one.
  private static func hostAndGuest(
    _ gate: WriteGate = WriteGate()
  ) throws -> (host: QueueHarness, guest: QueueHarness) {
    let setup = QueueSetup(isInline: false, keepsWrites: true)
    let host = try QueueHarness(setup, index: 0, gate: gate)
    let guest = try QueueHarness(setup, index: 1, gate: gate, disk: host.backend.disk)
    guest.loseBackend()
    guest.control.tell { $0.relay = Relay(host: host.control, parameters: setup.parameters) }
    return (host, guest)
  }

  @Test func guestsOfAQueueThatIsGivenUpAreToldAndKeepNoMemory() throws {
    let (host, guest) = try Self.hostAndGuest()
    host.backend.judge = { _ in .hold }
    for index in 0..<1500 as Range<UInt64> {
      guard let operation = guest.begin(.write, index % 1000 * 512, 512) else { break }
      guest.queue.submit(operation)
    }
    Self.settle(host, guest)
    #expect(guest.completions.isEmpty)
    for harness in [guest, host] {
      harness.control.tell {
        $0.refusal = .shutdown
        $0.failEverything = .shutdown
      }
    }
    Self.settle(host, guest)
    #expect(
      guest.takeStatuses() == [OperationStatus](repeating: .shutdown, count: QueueCore.operationCapacity))
    #expect(host.queue.unfinishedOperations == 0)
    #expect(guest.queue.unfinishedOperations == 0)
  }

  /// A caller of the host has nothing outstanding: it would wait for ever.
  @Test(arguments: [(40, 65_536), (1200, 512)])
  func regression_guestsLeaveRoomForTheHostsOwn(count: Int, size: Int) throws {
    let (host, guest) = try Self.hostAndGuest()
    host.backend.judge = { _ in .hold }
    for index in 0..<count {
      guard let operation = guest.begin(.write, UInt64(index % 1000 * 512), UInt64(size)) else { break }
      guest.queue.submit(operation)
    }
    Self.settle(host, guest)
    #expect(host.queue.unfinishedOperations >= min(count, 512))
    let read = try #require(host.begin(.read, 0, 131_072))
    host.queue.cancel(read)
    let flush = try #require(host.begin(.flush, 0, 0))
    host.queue.cancel(flush)
    for harness in [guest, host] {
      harness.control.tell {
        $0.refusal = .shutdown
        $0.failEverything = .shutdown
      }
    }
    Self.settle(host, guest)
    #expect(host.queue.unfinishedOperations == 0 && guest.queue.unfinishedOperations == 0)
  }

  /// What the backend has yet to write has the neighbours' bytes of before in it, whoever asked for it.
  @Test func regression_anUnalignedWriteWithAnotherQueueThatBreaksLetsNobodyThrough() throws {
    let gate = WriteGate()
    let (host, guest) = try Self.hostAndGuest(gate)
    let third = try QueueHarness(
      QueueSetup(isInline: false, keepsWrites: true), index: 2, gate: gate, disk: host.backend.disk)
    host.backend.judge = { $0.operation == 1 ? .hold : .serve }
    guest.submit(.write, 777, 100, data: [UInt8](repeating: 5, count: 100))
    // Its turn is after the first, also when that comes back as given up.
    guest.submit(.write, 900, 100, data: [UInt8](repeating: 6, count: 100))
    Self.settle(host, guest)
    #expect(host.backend.held.count == 1)
    host.backend.setIndex(.responseProducer, 99)
    host.channels.raise()
    Self.settle(host, guest)
    #expect(guest.takeStatuses() == [.ioError])
    third.submit(.write, 512, 512, data: [UInt8](repeating: 9, count: 512))
    third.settle()
    #expect(third.backend.log.isEmpty && third.takeStatuses().isEmpty)
    for harness in [host, guest] { harness.loseBackend() }
    third.settle()
    #expect(third.backend.log.isEmpty)
    host.backend.judge = { _ in .serve }
    try host.reconnect()
    guest.control.tell { $0.relay = Relay(host: host.control, parameters: host.setup.parameters) }
    Self.settle(host, guest)
    third.settle()
    Self.settle(host, guest)
    #expect(guest.takeStatuses() == [.okay])
    #expect(third.takeStatuses() == [.okay])
    let isKept = [host.diskBytes[512], host.diskBytes[899], host.diskBytes[1000], host.diskBytes[1023]]
    #expect(isKept == [9, 9, 9, 9])
  }

  @Test func regression_aDrainWaitsForWhatIsOnItsWayToAnotherQueue() throws {
    let (host, guest) = try Self.hostAndGuest()
    guest.queue.poll()
    guest.submit(.write, 0, 512, data: [UInt8](repeating: 7, count: 512))
    guest.queue.poll()
    for harness in [guest, host] { harness.control.drain(refusing: .shutdown) }
    Self.settle(host, guest)
    #expect(guest.takeStatuses() == [.okay])
    #expect(host.backend.disk[0] == 7)
  }

  /// Its owner was told that it had failed: the next backend must not see it.
  @Test func regression_whatWasGivenUpWhileAnotherQueueHadItIsNotDone() throws {
    let (host, guest) = try Self.hostAndGuest()
    guest.queue.poll()
    guest.submit(.write, 0, 512, data: [UInt8](repeating: 7, count: 512))
    guest.queue.poll()
    for harness in [guest, host] {
      harness.control.tell { $0.failEverything = .ioError }
      harness.control.suspend()
    }
    host.queue.poll()
    guest.queue.poll()
    #expect(guest.takeStatuses() == [.ioError])
    try host.reconnect()
    guest.control.tell { $0.relay = Relay(host: host.control, parameters: host.setup.parameters) }
    Self.settle(host, guest)
    #expect(host.backend.log.isEmpty)
    #expect(host.queue.unfinishedOperations == 0)
    #expect(host.backend.disk[0] == 0)
  }
}
