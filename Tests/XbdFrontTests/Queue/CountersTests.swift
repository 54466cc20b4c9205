// SPDX-License-Identifier: Apache-2.0

import Blkif
import CAllocationCounter
import CXen
import Glibc
import Platform
import Testing
import Xen

@testable import XbdFront

@Suite struct CountersTests {
  @Test func countersSayWhatHappened() throws {
    let harness = try QueueHarness(
      QueueSetup(
        maxSegments: 32, isInline: false,
        discard: DiscardLimits(granularity: 512, alignment: 0, secure: false)))
    #expect(harness.write(0, Pattern.some(4096)) == .okay)
    #expect(harness.status(.read, 0, 131072) == .okay)
    #expect(harness.write(3, Pattern.some(10)) == .okay)
    #expect(harness.status(.flush) == .okay)
    #expect(harness.status(.discard, 0, 512) == .okay)
    #expect(harness.status(.writeZeroes, 0, 8192) == .okay)
    #expect(harness.status(.read, 1 << 40, 1) == .outOfRange)
    let counters = harness.queue.counters
    #expect(counters.reads == 2)
    #expect(counters.writes == 2)
    #expect(counters.flushes == 1)
    #expect(counters.discards == 1)
    #expect(counters.writeZeroes == 1)
    #expect(counters.failures == 1)
    #expect(counters.bytesRead == 131072)
    #expect(counters.bytesWritten == 4106)
    #expect(counters.unalignedOperations == 1)
    #expect(counters.directOperations == 2)
    #expect(counters.bouncedOperations == 1)
    // The read of 32 pages; write, edge, write back, flush, discard, zeroes.
    #expect(counters.indirectRequests == 1)
    #expect(counters.directRequests == 6)
    #expect(counters.responses == 7)
    #expect(counters.segments == 1 + 32 + 1 + 1 + 2)
    #expect(counters.bytesCopied == 512 + 512)
    #expect(counters.grantsMade == 64)
    #expect(counters.grantsEnded == 0)
    #expect(counters.poolHighWater == 33)
    #expect(counters.poolPages == 64)
    #expect(counters.poolBound == 256)
    #expect(counters.notificationsSent == UInt64(harness.channels.notifications))
    #expect(counters.events > 0)
    #expect(counters.spuriousEvents == 0)
  }

  @Test(arguments: CopyMode.allCases, [4096, 131072])
  func aRequestInTheSteadyStateAllocatesNothing(copy: CopyMode, byteCount: Int) throws {
    let (queue, pages) = try Self.trivial(copy)
    defer { withExtendedLifetime(pages) {} }
    let vectors = UnsafeMutableBufferPointer<iovec>.allocate(capacity: 64)
    defer { vectors.deallocate() }
    var ended = 0
    queue.onCompletion = { completion in
      ended += completion.status == .okay ? 1 : 0
      _ = queue.vectors(of: completion.operation, from: 0, into: vectors)
      queue.release(completion.operation)
    }
    defer { queue.onCompletion = { _ in } }
    func start(_ command: BlockRequest.Command, _ index: Int) {
      let request = BlockRequest(
        command: command, byteOffset: UInt64(index * byteCount), byteCount: UInt64(byteCount))
      guard let operation = queue.begin(request, tag: 1) else { return }
      _ = queue.vectors(of: operation, from: 0, into: vectors)
      queue.submit(operation)
    }
    func round() {
      var index = 0
      while index < 8 {
        start(.read, index)
        start(.write, index)
        index += 1
      }
      queue.poll()
      _ = queue.armWakeup()
    }
    for _ in 0..<10 { round() }
    let before = ended
    let watch = allocation_counter_watch(cxen_gettid())
    defer { allocation_counter_unwatch(watch) }
    for _ in 0..<100 { round() }
    let allocations = allocation_counter_count(watch)
    #expect(ended - before == 1600)
    #if DEBUG
      // Without optimisation the compiler puts some temporaries on the heap.
      #expect(allocations <= 2 * 1600)
    #else
      #expect(allocations == 0)
    #endif
  }

  static func trivial(_ copy: CopyMode) throws -> (BlockQueue, SharedPages) {
    var setup = QueueSetup(copy: copy, maxSegments: 32, poolPages: 960)
    setup.diskBytes = 64 << 20
    let pages = try FakeGrants().share(pages: 4, with: .dom0, writable: true, notification: nil)
    let ring = FrontRing(pages: pages.baseAddress, pageCount: 4)
    let pool = GrantPool(sharing: FakeGrants(), backend: .dom0, mode: .persistent, bound: 960)
    let core = QueueCore(index: 0, parameters: setup.parameters, ring: ring, pool: pool, gate: WriteGate())
    let channels = try FakeEventChannels()
    let queue = BlockQueue(
      core: core, channels: channels, port: try channels.bindUnbound(remote: .dom0), ringPages: pages,
      control: QueueControl(queue: 0) { _ in }, wakeup: try EventCounter())
    queue.runInline(try TrivialBackend(ringPages: pages))
    return (queue, pages)
  }
}
