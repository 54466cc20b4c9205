// SPDX-License-Identifier: Apache-2.0

import Glibc
import NBDTestSupport
import Platform
import Testing

@testable import NBD

/// What happens around requests: bounds, order, endings, several clients at a time.
@Suite struct ConnectionTests {
  @Test(arguments: allStyles) func manyRequestsInOneMessageAreAllAnswered(style: ReplyStyle) throws {
    let service = try Service()
    let client = try TestClient(service.worker, style)
    var bytes: [UInt8] = []
    for index in 0..<200 {
      bytes += client.encode(
        NBDCommand.write, cookie: UInt64(index), offset: UInt64(index * 4096), length: 4096,
        payload: pattern(4096, seed: UInt8(index)))
    }
    // In pieces that end anywhere.
    for start in stride(from: 0, to: bytes.count, by: 30_011) {
      try client.send(Array(bytes[start..<min(start + 30_011, bytes.count)]))
    }
    var cookies = Set<UInt64>()
    for _ in 0..<200 {
      let reply = try client.reply()
      #expect(reply.error == 0)
      cookies.insert(reply.cookie)
    }
    #expect(cookies.count == 200)
    for index in 0..<200 {
      #expect(
        service.disk.bytes[(index * 4096)..<(index * 4096 + 4096)].elementsEqual(
          pattern(4096, seed: UInt8(index))))
    }
  }

  @Test(arguments: allStyles) func aRequestSentByteByByteIsTheSameRequest(style: ReplyStyle) throws {
    let service = try Service()
    let client = try TestClient(service.worker, style)
    let bytes =
      client.encode(NBDCommand.write, cookie: 3, offset: 77, length: 40, payload: pattern(40))
      + client.encode(NBDCommand.write, cookie: 4, offset: 4096, length: 40_000, payload: pattern(40_000))
    for byte in bytes.prefix(200) {
      try client.send([byte])
      usleep(10)
    }
    try client.send(Array(bytes.dropFirst(200)))
    #expect(try client.reply().cookie == 3)
    #expect(try client.reply().cookie == 4)
    #expect(service.disk.bytes[77..<117].elementsEqual(pattern(40)))
    #expect(service.disk.bytes[4096..<44_096].elementsEqual(pattern(40_000)))
  }

  @Test func completionsInAnyOrderReachTheRightRequest() throws {
    let service = try Service(order: .reversed)
    let client = try TestClient(service.worker, .structured)
    for index in 0..<64 {
      #expect(try client.write(UInt64(index * 512), [UInt8](repeating: UInt8(index), count: 512)).error == 0)
    }
    service.disk.hold()
    for index in 0..<64 {
      try client.post(NBDCommand.read, cookie: UInt64(index), offset: UInt64(index * 512), length: 512)
    }
    #expect(eventually { service.worker.statistics()[.reads] == 64 })
    service.disk.letGo()
    for index in (0..<64).reversed() {
      let reply = try client.reply()
      #expect(reply.cookie == UInt64(index))
      #expect(reply.data.allSatisfy { $0 == UInt8(index) })
    }
  }

  @Test(arguments: [1, 100, 32_768, 32_769, 200_000, 999_999])
  func aWriteThatWasNotFullyReceivedChangesNothing(sent: Int) throws {
    let service = try Service()
    let witness = try TestClient(service.worker, .simple)
    do {
      let client = try TestClient(service.worker, .simple)
      let whole = client.encode(NBDCommand.write, length: 1_000_000, payload: pattern(1_000_000))
      try client.send(Array(whole.prefix(28 + sent)))
      #expect(try witness.read(0, 512).error == 0)
    }
    #expect(eventually { service.worker.statistics()[.connectionsClosed] == 1 })
    #expect(eventually { service.disk.outstandingCount == 0 })
    #expect(service.disk.submittedCount == 1)
    #expect(try witness.read(0, 1 << 20).data.allSatisfy { $0 == 0 })
  }

  @Test func theWritesBeforeADeathCountAndTheOneDuringItDoesNot() throws {
    let service = try Service()
    do {
      let client = try TestClient(service.worker, .simple)
      let first = client.encode(NBDCommand.write, length: 4096, payload: pattern(4096))
      let second = client.encode(NBDCommand.write, offset: 8192, length: 4096, payload: pattern(4096))
      try client.send(first + second.dropLast(1))
    }
    #expect(eventually { service.worker.statistics()[.connectionsClosed] == 1 })
    #expect(service.disk.bytes[0..<4096].elementsEqual(pattern(4096)))
    #expect(service.disk.bytes[8192...].allSatisfy { $0 == 0 })
  }

  @Test func completionsForAClientThatIsGoneGiveTheirMemoryBack() throws {
    let service = try Service()
    service.disk.hold()
    do {
      let client = try TestClient(service.worker, .simple)
      for cookie in 0..<50 { try client.post(NBDCommand.read, cookie: UInt64(cookie), length: 8192) }
      #expect(eventually { service.worker.statistics()[.reads] == 50 })
    }
    service.disk.letGo()
    #expect(eventually { service.disk.outstandingCount == 0 })
    #expect(eventually { service.worker.statistics()[.connectionsClosed] == 1 })
    #expect(try TestClient(service.worker, .simple).read(0, 512).error == 0)
  }

  @Test func aClientThatClosesItsSendingSideStillGetsItsAnswers() throws {
    let service = try Service()
    let client = try TestClient(service.worker, .structured)
    service.disk.hold()
    for cookie in 0..<10 { try client.post(NBDCommand.read, cookie: UInt64(cookie), length: 100_000) }
    client.closeSending()
    #expect(eventually { service.worker.statistics()[.reads] == 10 })
    service.disk.letGo()
    for cookie in 0..<10 { #expect(try client.reply().cookie == UInt64(cookie)) }
    try client.waitForClose()
  }

  @Test func aClientThatDoesNotReadItsRepliesKeepsNobodyElseWaiting() throws {
    let service = try Service(byteCount: 8 << 20)
    let lazy = try TestClient(service.worker, .simple)
    for cookie in 0..<100 { try lazy.post(NBDCommand.read, cookie: UInt64(cookie), length: 1 << 20) }
    let client = try TestClient(service.worker, .simple)
    for _ in 0..<100 { #expect(try client.read(0, 65_536).error == 0) }
    // What the lazy client may keep is bounded: far less than the 100 MiB that it asked for.
    #expect(service.disk.outstandingCount <= 8)
    for cookie in 0..<100 {
      let reply = try lazy.reply()
      #expect(reply.cookie == UInt64(cookie) && reply.data.count == 1 << 20)
    }
  }

  @Test func clientsShareATargetWithFewPagesAndAllFinish() throws {
    // 64 pages: one write of 256 KiB takes them all.
    let service = try Service(byteCount: 8 << 20, pageCount: 64)
    let worker = service.worker
    try concurrently(6) { client in
      let connection = try TestClient(worker, allStyles[client % 3])
      for turn in 0..<30 {
        let count = [4096, 262_144, 100_000][(turn + client) % 3]
        let bytes = pattern(count, seed: UInt8(turn * 6 + client))
        guard try connection.write(UInt64(client << 20), bytes).error == 0,
          try connection.read(UInt64(client << 20), count).data == bytes
        else { throw ClientError.unexpected("turn \(turn)") }
      }
    }
    #expect(service.worker.statistics()[.targetFull] > 0)
    #expect(eventually { service.disk.outstandingCount == 0 })
  }

  @Test(arguments: allStyles) func aRequestThatTheTargetCanNeverTakeIsRefusedInsteadOfWaiting(
    style: ReplyStyle
  ) throws {
    let service = try Service(byteCount: 8 << 20, pageCount: 16)
    let client = try TestClient(service.worker, style)
    #expect(try client.read(0, 1 << 20).error == NBDError.noMemory)
    #expect(try client.write(0, pattern(1 << 20)).error == NBDError.noMemory)
    #expect(try client.read(0, 65_536).error == 0)
  }

  @Test func aClientThatHoldsTheTargetsMemoryWithoutMovingIsDropped() throws {
    let service = try Service(
      byteCount: 8 << 20, pageCount: 64, configuration: { $0.stallTimeout = .milliseconds(200) })
    let stalled = try TestClient(service.worker, .simple)
    try stalled.send(
      Array(stalled.encode(NBDCommand.write, length: 262_144, payload: pattern(262_144)).prefix(5000)))
    #expect(eventually { service.disk.outstandingCount == 1 })
    let client = try TestClient(service.worker, .simple)
    #expect(try client.read(0, 262_144).error == 0)
    try stalled.waitForClose()
    #expect(service.disk.cancelledCount == 1)
  }

  /// The header of a good reply may have left already.
  @Test(arguments: [ReplyStyle.simple, .structured])
  func regression_aReplyWhoseDataIsGoneEndsTheConnectionAndNotTheWorkersRest(style: ReplyStyle) throws {
    let service = try Service()
    let client = try TestClient(service.worker, style)
    service.disk.losePayloads()
    #expect(throws: ClientError.self) { _ = try client.read(0, 4096) }
    try client.waitForClose()
    let other = try TestClient(service.worker, style)
    #expect(try other.call(NBDCommand.flush).error == 0)
    #expect(service.disk.outstandingCount == 0)
  }

  @Test func aClientMayNotHoldMoreRequestsThanItsBound() throws {
    let service = try Service(configuration: { $0.maximumRequestsPerConnection = 8 })
    let client = try TestClient(service.worker, .simple)
    service.disk.hold()
    for cookie in 0..<100 { try client.post(NBDCommand.read, cookie: UInt64(cookie), length: 512) }
    #expect(eventually { service.worker.statistics()[.reads] == 8 })
    usleep(20_000)
    #expect(service.disk.outstandingCount == 8)
    service.disk.letGo()
    for _ in 0..<100 { #expect(try client.reply().error == 0) }
  }

  @Test func aTableOfRequestsThatIsFullMakesClientsWaitInTurn() throws {
    let service = try Service(configuration: { $0.maximumRequests = 4 })
    let clients = try (0..<4).map { _ in try TestClient(service.worker, .structured) }
    for client in clients {
      for cookie in 0..<50 { try client.post(NBDCommand.read, cookie: UInt64(cookie), length: 4096) }
      // Requests that never reach the target wait in the same line.
      try client.post(99, cookie: 50)
    }
    for client in clients {
      var cookies = Set<UInt64>()
      for _ in 0...50 {
        let reply = try client.reply()
        #expect(reply.error == (reply.cookie == 50 ? NBDError.invalid : 0))
        cookies.insert(reply.cookie)
      }
      #expect(cookies == Set(0...50))
    }
  }

  @Test func aFlushOnOneConnectionComesAfterWritesThatAnotherOneHadAnswered() throws {
    let service = try Service()
    let writer = try TestClient(service.worker, .simple)
    let flusher = try TestClient(service.worker, .extended)
    #expect(flusher.transmissionFlags.contains(.canMultiConn))
    #expect(try writer.write(0, pattern(4096)).error == 0)
    #expect(try flusher.call(NBDCommand.flush).error == 0)
    #expect(service.disk.flushCount == 1)
    #expect(try flusher.read(0, 4096).data == pattern(4096))
  }

  @Test func aHandshakeThatIsNeverFinishedIsDropped() throws {
    let service = try Service(configuration: { $0.handshakeTimeout = .seconds(2) })
    let other = try TestClient(service.worker, .simple)
    let slow = try TestClient(service.worker)
    try slow.greet()
    try slow.waitForClose()
    #expect(service.worker.statistics()[.handshakesFailed] == 1)
    #expect(try other.read(0, 512).error == 0)
  }

  @Test func aHandshakeOfAByteNowAndThenIsDroppedAsWell() throws {
    let service = try Service(configuration: { $0.handshakeTimeout = .seconds(2) })
    let slow = try TestClient(service.worker)
    try slow.greet()
    let option = TestClient.option(NBDOption.list)
    // Ten times as long as it may take, if each byte gave it more time.
    #expect(throws: ClientError.self) {
      for byte in option + option + option {
        try slow.send([byte])
        usleep(400_000)
      }
    }
    #expect(service.worker.statistics()[.handshakesFailed] == 1)
  }

  @Test func aClientThatNeverReadsTheRepliesToItsOptionsIsBounded() throws {
    let service = try Service(configuration: { $0.handshakeTimeout = .seconds(3) })
    let client = try TestClient(service.worker)
    try client.greet()
    let options = (0..<1000).flatMap { _ in TestClient.option(NBDOption.list) }
    var limit = timeval(tv_sec: 0, tv_usec: 200_000)
    setsockopt(client.descriptor.raw, SOL_SOCKET, SO_SNDTIMEO, &limit, socklen_t(MemoryLayout<timeval>.size))
    // Either the server stops reading, or it drops the client: it never takes in options for ever.
    #expect(throws: ClientError.self) { while true { try client.send(options) } }
  }

  @Test func tooManyConnectionsAreTurnedAway() throws {
    let service = try Service(configuration: { $0.maximumConnections = 2 })
    let first = try TestClient(service.worker, .simple)
    let second = try TestClient(service.worker, .simple)
    try TestClient(service.worker).waitForClose()
    #expect(try first.read(0, 1).error == 0)
    #expect(try second.read(0, 1).error == 0)
    #expect(service.worker.statistics()[.connectionsRefused] == 1)
  }

  // MARK: going down

  @Test func stoppingAnswersWhatIsInFlightRefusesTheRestAndFlushes() throws {
    let service = try Service()
    let client = try TestClient(service.worker, .structured)
    let idle = try TestClient(service.worker, .simple)
    service.disk.hold()
    try client.post(NBDCommand.write, cookie: 1, length: 4096, payload: pattern(4096))
    #expect(eventually { service.worker.statistics()[.writes] == 1 })
    service.worker.stop(gracePeriod: .seconds(30))
    try idle.waitForClose()
    try client.post(NBDCommand.read, cookie: 2, length: 4096)
    try client.post(NBDCommand.write, cookie: 3, offset: 8192, length: 100_000, payload: pattern(100_000))
    #expect(try client.reply() == Reply(cookie: 2, error: NBDError.shutdown))
    #expect(try client.reply() == Reply(cookie: 3, error: NBDError.shutdown))
    service.disk.letGo()
    #expect(try client.reply() == Reply(cookie: 1))
    try client.waitForClose()
    let outcome = service.worker.join()
    #expect(outcome == WorkerOutcome(finalFlush: .okay, flushWasDue: true, abandonedOperations: 0))
    #expect(service.disk.flushCount == 1)
    #expect(service.disk.bytes[8192...].allSatisfy { $0 == 0 })
  }

  @Test func stoppingGivesUpAWriteWhoseRestNeverComes() throws {
    let service = try Service()
    let client = try TestClient(service.worker, .simple)
    try client.send(
      Array(client.encode(NBDCommand.write, length: 500_000, payload: pattern(500_000)).prefix(90_000)))
    #expect(eventually { service.disk.outstandingCount == 1 })
    service.worker.stop(gracePeriod: .seconds(30))
    try client.waitForClose()
    #expect(service.worker.join().abandonedOperations == 0)
    #expect(service.disk.cancelledCount == 1)
    #expect(service.disk.bytes.allSatisfy { $0 == 0 })
  }

  @Test func regression_theRestOfAWriteThatIsGivenUpIsDroppedInLargePieces() throws {
    let service = try Service(byteCount: 32 << 20, pageCount: 8192)
    let client = try TestClient(service.worker, .simple)
    let request = client.encode(NBDCommand.write, length: 32 << 20, payload: pattern(32 << 20))
    // SAFETY: that thread alone uses the client until it is joined.
    nonisolated(unsafe) let sender = client
    // It may be cut off in between.
    let thread = try DedicatedThread(name: "sender") { try? sender.send(request) }
    #expect(eventually { service.disk.outstandingCount == 1 })
    service.worker.stop(gracePeriod: .seconds(30))
    thread.join()
    try client.waitForClose()
    #expect(service.worker.join().abandonedOperations == 0)
    #expect(service.worker.statistics()[.receives] < 20_000)
  }

  @Test func aClientThatNeverReadsCannotKeepTheServiceFromStopping() throws {
    let service = try Service(byteCount: 8 << 20)
    let client = try TestClient(service.worker, .simple)
    for cookie in 0..<20 { try client.post(NBDCommand.read, cookie: UInt64(cookie), length: 1 << 20) }
    #expect(eventually { service.worker.statistics()[.reads] > 0 })
    service.worker.stop(gracePeriod: .milliseconds(100))
    #expect(service.worker.join().abandonedOperations == 0)
    #expect(service.disk.outstandingCount == 0)
  }

  @Test func aDeviceThatNeverAnswersCannotKeepTheServiceFromStopping() throws {
    let service = try Service()
    let client = try TestClient(service.worker, .simple)
    service.disk.hold()
    try client.post(NBDCommand.read, length: 4096)
    #expect(eventually { service.worker.statistics()[.reads] == 1 })
    service.worker.stop(gracePeriod: .milliseconds(50))
    try client.waitForClose()
    let outcome = service.worker.join()
    #expect(outcome == WorkerOutcome(finalFlush: nil, flushWasDue: true, abandonedOperations: 2))
    let isTaken = service.worker.adopt(OwnedDescriptor(dup(1)))
    #expect(!isTaken)
  }

  @Test func aFailedLastFlushIsReported() throws {
    let service = try Service()
    service.disk.fail(with: .ioError)
    service.worker.stop()
    #expect(service.worker.join().finalFlush == .ioError)
  }
}
