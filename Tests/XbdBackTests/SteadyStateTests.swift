// SPDX-License-Identifier: Apache-2.0

import Blkif
import CAllocationCounter
import CXen
import Glibc
import Platform
import Testing
import Xen

@testable import XbdBack

@Suite struct SteadyStateTests {
  @Test(arguments: [false, true]) func aRequestAllocatesNothing(usesFile: Bool) throws {
    let scratch = try ScratchDirectory()
    try makeImage(scratch.file("disk"), byteCount: 1 << 20)
    let storage: any Storage =
      usesFile ? try FileStorage(path: scratch.file("disk")) : try MemoryStorage(byteCount: 1 << 20)
    try withBackend { frontend, backend in
      try frontend.connect(backend, storage)
      let queue = try #require(frontend.device?.colocatedQueue(0))
      var warm = [UInt8](repeating: 3, count: 1 << 20)
      #expect(transfer(storage, .write, at: 0, &warm) == .done)
      let first = frontend.dataPage
      let list = first + 100
      let segments = (0..<32).map { page(first + $0) }
      func round() throws {
        for index in 0..<8 as Range<UInt32> {
          _ = frontend.enqueue(
            .write, sector: UInt64(index) * 8, [page(first + index), page(first + index + 40)])
          _ = frontend.enqueue(.read, sector: UInt64(index) * 8, [page(first + index)])
        }
        _ = frontend.enqueueIndirect(.write, sector: 256, segments, page: list)
        _ = frontend.enqueueIndirect(.read, sector: 256, segments, page: list)
        try frontend.publishRequests()
      }
      try round()
      #expect(queue.run())
      try frontend.collect()
      let watch = allocation_counter_watch(cxen_gettid())
      defer { allocation_counter_unwatch(watch) }
      var allocations: UInt64 = 0
      for _ in 0..<10 {
        try round()
        let before = allocation_counter_count(watch)
        let did = queue.run()
        allocations += allocation_counter_count(watch) - before
        #expect(did)
        try frontend.collect()
      }
      #expect(frontend.responses.count == 11 * 18)
      #expect(frontend.responses.values.allSatisfy { $0.status == 0 })
      if frontend.device?.statistics.slowRequests == 0 { #expect(allocations == 0) }
      #expect(frontend.device?.statistics.transientMaps == 0)
    }
  }

  @Test func aColdReadIsAnsweredByAWorkerThatWakesTheHost() throws {
    let storage = WaitingStorage()
    try withBackend { frontend, backend in
      try frontend.connect(backend, storage)
      let queue = try #require(frontend.device?.colocatedQueue(0))
      let slow = frontend.enqueue(.read, sector: 0, [page(frontend.dataPage)])
      let quick = frontend.enqueue(.write, sector: 8, [page(frontend.dataPage + 1)])
      try frontend.publishRequests()
      #expect(queue.run())
      try frontend.collect()
      #expect(frontend.responses.keys.sorted() == [quick], "a slow request must not hold up the others")
      storage.letGo()
      var waiter = pollfd(fd: queue.wakeDescriptor, events: Int16(POLLIN), revents: 0)
      #expect(poll(&waiter, 1, 30_000) == 1)
      #expect(queue.run())
      try frontend.collect()
      #expect(frontend.responses[slow]?.status == 0)
      #expect(frontend.device?.statistics.slowRequests == 1)
      #expect(poll(&waiter, 1, 0) == 0)
    }
  }

  @Test func aBarrierWaitsForEverythingBeforeAndHoldsEverythingBehind() throws {
    let storage = WaitingStorage()
    try withBackend { frontend, backend in
      try frontend.connect(backend, storage)
      let queue = try #require(frontend.device?.colocatedQueue(0))
      let slow = frontend.enqueue(.read, sector: 0, [page(frontend.dataPage)])
      let barrier = frontend.enqueue(.writeBarrier, sector: 8, [page(frontend.dataPage + 1)])
      let behind = frontend.enqueue(.write, sector: 16, [page(frontend.dataPage + 2)])
      try frontend.publishRequests()
      _ = queue.run()
      _ = queue.run()
      try frontend.collect()
      #expect(frontend.answered.isEmpty)
      storage.letGo()
      #expect(
        try eventually {
          _ = queue.run()
          try frontend.collect()
          return frontend.answered.count == 3
        })
      #expect(frontend.answered == [slow, barrier, behind])
      #expect(storage.log == [.read, .flush, .write, .flush, .write])
    }
  }

  @Test func tearingDownWaitsForTheWorkersAndUnmapsEverything() throws {
    for execution in [BackendConfiguration.Execution.colocated, .ownThread] {
      let storage = WaitingStorage()
      try withBackend { frontend, backend in
        try frontend.connect(backend, storage, .colocated { $0.execution = execution }, persistent: false)
        for index in 0..<8 as Range<UInt32> {
          _ = frontend.enqueue(.read, sector: 0, [page(frontend.dataPage + index)])
        }
        try frontend.publishRequests()
        _ = frontend.device?.colocatedQueue(0)?.run()
        #expect(eventually { storage.waiting > 0 })
        let mapped = frontend.xen.mappedPages
        #expect(mapped > 1)
        frontend.set("state", "6")
        usleep(20_000)
        #expect(frontend.xen.mappedPages > 1, "pages that a worker is using are unmapped")
        storage.letGo()
        #expect(eventually { frontend.backState == "6" })
        #expect(frontend.xen.mappedPages == 0)
      }
    }
  }
}

/// A disk whose reads wait until they are let go.
final class WaitingStorage: Storage, @unchecked Sendable {
  private let monitor = Monitor()
  private var open = false
  private var waiters = 0
  private var operations: [StorageRequest.Operation] = []
  var description: String { "waiting" }
  var byteCount: UInt64 { 1 << 20 }
  var isReadOnly: Bool { false }
  var discardGranularity: Int? { nil }
  var canDiscardSecurely: Bool { false }
  var requiredAlignment: Int { 512 }
  var waiting: Int { monitor.withLock { waiters } }
  var log: [StorageRequest.Operation] { monitor.withLock { operations } }
  func letGo() {
    monitor.withLock {
      open = true
      monitor.signalAll()
    }
  }
  func attempt(_ request: inout StorageRequest) -> StorageOutcome {
    request.operation == .read ? .wouldBlock : perform(&request)
  }
  func perform(_ request: inout StorageRequest) -> StorageOutcome {
    monitor.withLock {
      if request.operation == .read {
        waiters += 1
        while !open { monitor.wait() }
        waiters -= 1
      }
      operations.append(request.operation)
      return .done
    }
  }
  func refreshByteCount() throws(StorageError) -> UInt64 { byteCount }
  func resize(to byteCount: UInt64) throws(StorageError) {}
}
