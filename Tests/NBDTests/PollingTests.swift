// SPDX-License-Identifier: Apache-2.0

import Glibc
import NBDTestSupport
import Synchronization
import Testing

@testable import NBD

/// A connection that keeps the thread busy is looked at without the event loop; nobody can tell by what happens to it.
@Suite struct PollingTests {
  /// A worker that spins for so long that a client which asks without a pause is never slept for.
  private static func spinning(byteCount: Int = 1 << 20) throws -> Service {
    try Service(byteCount: byteCount, configuration: { $0.maximumSpinMicroseconds = 20_000 })
  }

  /// Asks until the connection has left the event loop once more.
  ///
  /// Returns while it is out of it, so without an `#expect`: the first one takes longer than the thread spins.
  private static func makeBusy(_ client: TestClient, _ service: Service) throws {
    let before = service.worker.statistics()[.polledConnections]
    for _ in 0..<100_000 {
      guard try client.read(0, 512).error == 0 else { throw ClientError.unexpected("a read failed") }
      if service.worker.statistics()[.polledConnections] > before { return }
    }
    throw ClientError.unexpected("the connection never left the event loop")
  }

  @Test func aBusyConnectionIsServedOnAfterItFellSilent() throws {
    let service = try Self.spinning()
    let client = try TestClient(service.worker, .structured)
    for round in 0..<3 {
      try Self.makeBusy(client, service)
      // Five times as long as the thread spins before it goes to sleep.
      usleep(100_000)
      let bytes = pattern(100_000, seed: UInt8(round))
      #expect(try client.write(4096, bytes).error == 0)
      #expect(try client.read(4096, bytes.count).data == bytes)
    }
  }

  @Test(arguments: [false, true]) func aBusyConnectionThatClosesIsSeenToBeGone(halfRequest: Bool) throws {
    let service = try Self.spinning()
    do {
      let client = try TestClient(service.worker, .simple)
      try Self.makeBusy(client, service)
      if halfRequest { try client.send([0x25, 0x60, 0x95]) }
    }
    #expect(eventually { service.worker.statistics().connectionsOpen == 0 })
    #expect(eventually { service.disk.outstandingCount == 0 })
  }

  @Test(arguments: [0, 50]) func othersAreServedWhileTheTargetHasMoreToDo(spin: Int) throws {
    let service = try Service(byteCount: 1 << 20, configuration: { $0.maximumSpinMicroseconds = spin })
    let first = try TestClient(service.worker, .simple)
    let second = try TestClient(service.worker, .simple)
    service.disk.gather(2)
    // The flush at the end comes alone.
    defer { service.disk.gather(0) }
    for round in 0..<20 as Range<UInt64> {
      try first.post(NBDCommand.read, cookie: round, length: 512)
      // The thread has the first request, and nothing but the second lets it go on.
      #expect(eventually { service.disk.submittedCount == Int(round) * 2 + 1 })
      try second.post(NBDCommand.read, cookie: round, length: 512)
      #expect(try first.reply().error == 0)
      #expect(try second.reply().error == 0)
    }
  }

  @Test func othersAreServedWhileOneIsBusy() throws {
    let service = try Self.spinning()
    let worker = service.worker
    let busy = try TestClient(worker, .simple)
    try Self.makeBusy(busy, service)
    // Comes while the event loop has no connection at all.
    let other = try TestClient(worker, .structured)
    let isDone = Atomic(false)
    try concurrently(2) { [busy = Unchecked(busy), other = Unchecked(other)] index in
      defer { isDone.store(true, ordering: .relaxed) }
      if index == 0 {
        // Leaves the thread no time to go to sleep.
        while !isDone.load(ordering: .relaxed) { _ = try busy.value.read(0, 512) }
      } else {
        for turn in 0..<300 {
          guard try other.value.read(UInt64(turn % 16) * 4096, 4096).error == 0 else {
            throw ClientError.unexpected("a read failed")
          }
          usleep(200)
        }
      }
    }
    #expect(eventually { service.disk.outstandingCount == 0 })
  }

  @Test func aBusyConnectionWhoseRepliesDoNotFitGoesOnWhenThereIsRoom() throws {
    let service = try Self.spinning(byteCount: 8 << 20)
    let client = try TestClient(service.worker, .structured)
    let requests = (0..<40).flatMap { client.encode(NBDCommand.read, cookie: UInt64($0), length: 1 << 20) }
    try Self.makeBusy(client, service)
    // At once: a connection that has nothing for a while is given back to the event loop.
    try client.send(requests)
    // Until nothing moves any more: the socket is full.
    var sends = UInt64.max
    while sends != service.worker.statistics()[.sends] {
      sends = service.worker.statistics()[.sends]
      usleep(50_000)
    }
    for cookie in 0..<40 {
      let reply = try client.reply()
      #expect(reply.cookie == UInt64(cookie) && reply.data.count == 1 << 20)
    }
    try Self.makeBusy(client, service)
  }

  @Test func stoppingEndsABusyConnection() throws {
    let service = try Self.spinning()
    let client = try TestClient(service.worker, .simple)
    try Self.makeBusy(client, service)
    service.worker.stop(gracePeriod: .seconds(30))
    try client.waitForClose()
    #expect(service.worker.join().abandonedOperations == 0)
  }

  /// A client that one thread uses at a time.
  private struct Unchecked: @unchecked Sendable {
    let value: TestClient
    init(_ value: TestClient) { self.value = value }
  }
}
