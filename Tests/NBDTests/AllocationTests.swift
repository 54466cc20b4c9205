// SPDX-License-Identifier: Apache-2.0

import CAllocationCounter
import CXen
import NBDTestSupport
import Synchronization
import Testing

@testable import NBD

/// The path of a request must not allocate.
///
/// Optimised or not: what an optimiser removes is not counted on.
@Suite struct AllocationTests {
  /// Learns the id of the thread that the worker runs on: the first call of a target comes from it.
  final class ThreadProbe: BlockTarget {
    let inner: MemoryTarget
    let threadID: ThreadID

    final class ThreadID: Sendable {
      let value = Atomic<Int32>(0)
    }

    init(_ inner: MemoryTarget, _ threadID: ThreadID) {
      self.inner = inner
      self.threadID = threadID
    }

    var geometry: TargetGeometry { inner.geometry }
    func begin(_ request: TargetRequest, tag: UInt64) -> TargetOperation? {
      if threadID.value.load(ordering: .relaxed) == 0 {
        threadID.value.store(cxen_gettid(), ordering: .sequentiallyConsistent)
      }
      return inner.begin(request, tag: tag)
    }
    func vectors(
      of operation: TargetOperation, from byteOffset: Int, into vectors: UnsafeMutableBufferPointer<iovec>
    ) -> Int { inner.vectors(of: operation, from: byteOffset, into: vectors) }
    func submit(_ operation: TargetOperation) { inner.submit(operation) }
    func cancel(_ operation: TargetOperation) { inner.cancel(operation) }
    func release(_ operation: TargetOperation) { inner.release(operation) }
    var onCompletion: (UInt64, TargetOperation, TargetStatus) -> Void {
      get { inner.onCompletion }
      set { inner.onCompletion = newValue }
    }
    func poll() -> Bool { inner.poll() }
    var hasMore: Bool { inner.hasMore }
    func armWakeup() -> Bool { inner.armWakeup() }
    var descriptors: [Int32] { inner.descriptors }
  }

  @Test(arguments: allStyles, [4096, 100_000])
  func requestsAllocateNothingOnceWarm(style: ReplyStyle, count: Int) throws {
    let disk = MemoryDisk(byteCount: 1 << 20)
    let threadID = ThreadProbe.ThreadID()
    var settings = WorkerConfiguration()
    settings.maximumSpinMicroseconds = 20
    let worker = try Worker(
      target: ThreadProbe(try MemoryTarget(disk: disk), threadID), export: Export(), configuration: settings)
    defer {
      worker.stop()
      worker.join()
    }
    let client = try TestClient(worker, style)
    let bytes = pattern(count)
    func exchange(_ rounds: Int) throws {
      for _ in 0..<rounds {
        for cookie: UInt64 in 0..<4 {
          try client.post(NBDCommand.write, cookie: cookie, length: UInt64(count), payload: bytes)
        }
        for _ in 0..<4 { #expect(try client.reply().error == 0) }
        for cookie: UInt64 in 0..<4 {
          try client.post(NBDCommand.read, cookie: cookie, length: UInt64(count))
        }
        try client.post(NBDCommand.flush, cookie: 9)
        try client.post(NBDCommand.cache, cookie: 10, length: 4096)
        try client.post(99, cookie: 11)
        for _ in 0..<7 { _ = try client.reply() }
      }
    }
    try exchange(10)
    let watch = allocation_counter_watch(threadID.value.load(ordering: .sequentiallyConsistent))
    #expect(watch >= 0)
    defer { allocation_counter_unwatch(watch) }
    try exchange(count > 50_000 ? 50 : 300)
    #expect(allocation_counter_count(watch) == 0)
    // The counter counts: a new connection allocates on the worker's thread.
    _ = try TestClient(worker, style)
    #expect(allocation_counter_count(watch) > 0)
  }
}
