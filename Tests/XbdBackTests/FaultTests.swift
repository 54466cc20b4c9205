// SPDX-License-Identifier: Apache-2.0
//
// Faults on purpose: each meets the request it is meant for, and no other.

import Blkif
import Glibc
import Testing

@testable import XbdBack

@Suite struct FaultTests {
  private func with(_ faults: [String], _ body: (TestFrontend) throws -> Void) throws {
    try withBackend { frontend, backend in
      let plan = try FaultPlan(parsing: faults, seed: 1)
      try frontend.connect(
        backend, try MemoryStorage(byteCount: 1 << 20), .colocated { $0.faults = plan })
      try body(frontend)
    }
  }

  @Test func eachIsReadAsItIsWritten() throws {
    let texts = [
      "error@1", "notsupported:flush@2+", "delay=50:read@*3", "late:write@1/4", "drop:discard@9",
      "stop:any@7", "die@8",
    ]
    let plan = try FaultPlan(parsing: texts, seed: 5)
    #expect(
      plan.faults == [
        .init(.error, .at(1)), .init(.notSupported, of: .flush, .from(2)),
        .init(.delay(milliseconds: 50), of: .read, .every(3)), .init(.late, of: .write, .random(oneIn: 4)),
        .init(.drop, of: .discard, .at(9)), .init(.stop, .at(7)), .init(.die, .at(8)),
      ])
    #expect(plan.isRandom && plan.seed == 5)
    for text in [
      "", "error", "error@", "error@0", "error@-1", "error@x", "error@1@2", "wrong@1", "delay@1", "delay=x@1",
      "error:seek@1",
      "error:read:write@1", "error@*0", "error@1/0", "@1", "error@1++",
    ] {
      #expect(throws: FaultPlanError.self, "\(text)") { _ = try FaultPlan(parsing: [text]) }
    }
  }

  @Test func theNthRequestOfAnOperationFails() throws {
    try with(["error:write@2", "notsupported:read@*2"]) { frontend in
      let writes = try (0..<4).map { _ in try frontend.perform(.write, [page(1)]) }
      #expect(writes == [0, -1, 0, 0])
      let reads = try (0..<4).map { _ in try frontend.perform(.read, [page(1)]) }
      #expect(reads == [0, -2, 0, -2])
      #expect(try frontend.perform(.flush) == 0)
    }
  }

  @Test func aFailedWriteChangesNothing() throws {
    try with(["error:write@2"]) { (frontend) throws in
      frontend.xen.page(1).storeBytes(of: 1, as: UInt8.self)
      #expect(try frontend.perform(.write, [page(1)]) == 0)
      frontend.xen.page(1).storeBytes(of: 2, as: UInt8.self)
      #expect(try frontend.perform(.write, [page(1)]) == -1)
      #expect(try frontend.perform(.read, [page(2)]) == 0)
      #expect(frontend.xen.page(2).load(as: UInt8.self) == 1)
    }
  }

  @Test func aLateAnswerComesAfterThoseThatWereAskedLater() throws {
    try with(["late@1", "late@2"]) { frontend in
      let ids = (0..<4).map { _ in frontend.enqueue(.read, sector: 0, [page(1)]) }
      for id in ids { _ = try frontend.wait(for: id) }
      #expect(frontend.answered == [ids[2], ids[3], ids[1], ids[0]])
    }
  }

  @Test func aDelayedAnswerIsOvertaken() throws {
    try with(["delay=50@1"]) { frontend in
      let first = frontend.enqueue(.read, sector: 0, [page(1)])
      let second = frontend.enqueue(.read, sector: 0, [page(2)])
      _ = try frontend.wait(for: first)
      #expect(frontend.answered == [second, first])
    }
  }

  /// Its range was checked before it waited, and the disk became shorter meanwhile.
  @Test func regression_aBarrierThatWaitedDoesNotMakeTheFileLongerAgain() throws {
    try withBackend { frontend, backend in
      let scratch = try ScratchDirectory()
      let path = scratch.file("disk")
      try makeImage(path, byteCount: 1 << 20)
      let plan = try FaultPlan(parsing: ["delay=300:flush@1"])
      try frontend.connect(backend, try FileStorage(path: path), .colocated { $0.faults = plan })
      let flush = frontend.enqueue(.flush, sector: 0, [])
      let barrier = frontend.enqueue(.writeBarrier, sector: 2040, [page(frontend.dataPage)])
      try frontend.publishRequests()
      _ = frontend.device?.colocatedQueue(0)?.run()
      try frontend.collect()
      #expect(frontend.answered.isEmpty)
      try frontend.device?.resize(to: 1 << 19)
      #expect(try frontend.wait(for: flush).status == 0)
      #expect(try frontend.wait(for: barrier).status == -1)
      var status = stat()
      #expect(stat(path, &status) == 0 && status.st_size == 1 << 19)
      #expect(try frontend.perform(.writeBarrier, sector: 1016, [page(frontend.dataPage)]) == 0)
    }
  }

  /// A frontend that sleeps would sleep on.
  @Test func regression_aNotificationThatFailedForWantOfADescriptorIsTriedAgain() throws {
    try withBackend { frontend, backend in
      try frontend.connect(
        backend, try MemoryStorage(byteCount: 1 << 20), .colocated { $0.execution = .ownThread })
      _ = try frontend.channels.nextPending()
      _ = frontend.enqueue(.read, sector: 0, [page(frontend.dataPage)])
      #expect(frontend.arm())
      frontend.xen.refuseNotifications(3, except: frontend.channels)
      try frontend.publishRequests()
      var entry = pollfd(fd: frontend.channels.fileDescriptor, events: Int16(POLLIN), revents: 0)
      #expect(poll(&entry, 1, 20_000) == 1)
      #expect(frontend.device?.statistics.notificationsSent == 1)
    }
  }

  @Test func aDroppedAnswerNeverComesAndTheOthersDo() throws {
    try with(["drop@1"]) { (frontend) throws in
      let first = frontend.enqueue(.read, sector: 0, [page(1)])
      #expect(try frontend.perform(.read, [page(2)]) == 0)
      #expect(frontend.responses[first] == nil && !frontend.answered.contains(first))
    }
  }

  @Test func aStoppedBackendAnswersAgainAfterANewConnection() throws {
    try with(["stop@2"]) { frontend in
      #expect(try frontend.perform(.read, [page(1)]) == 0)
      _ = frontend.enqueue(.read, sector: 0, [page(1)])
      try frontend.publishRequests()
      for _ in 0..<100 { _ = frontend.device?.colocatedQueue(0)?.run() }
      try frontend.collect()
      #expect(frontend.responses.isEmpty)
      frontend.set("state", "6")
      #expect(eventually { frontend.backState == "6" })
      frontend.set("state", "1")
      #expect(eventually { frontend.backState == "2" })
      try frontend.publish()
      #expect(eventually { frontend.backState == "4" })
      #expect(try frontend.perform(.read, [page(1)]) == 0)
    }
  }

  @Test func aSeedGivesTheSameFaultsAgain() throws {
    func draw(_ seed: UInt64) throws -> [Bool] {
      let injector = try #require(FaultInjector(FaultPlan([.init(.error, .random(oneIn: 3))], seed: seed)))
      return (0..<300).map { _ in injector.next(.read) != nil }
    }
    let first = try draw(7)
    let again = try draw(7)
    let other = try draw(8)
    #expect(first == again && first != other)
    #expect((60...140).contains(first.filter { $0 }.count))
  }
}
