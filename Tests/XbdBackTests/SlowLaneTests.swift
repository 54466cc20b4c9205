// SPDX-License-Identifier: Apache-2.0

import Glibc
import Platform
import Testing

@testable import XbdBack

@Suite struct SlowLaneTests {
  // A queue's thread that sleeps on a descriptor which stays readable does not sleep.
  @Test func whoHasTakenEverythingIsNotWokenForIt() throws {
    let workers = StorageWorkers(threadCount: 1)
    defer { workers.stop() }
    let slots = try PendingRequests(capacity: 4, maxSegments: 1, staging: false)
    let lane = try SlowLane(storage: try MemoryStorage(byteCount: 4096), slots: slots, workers: workers)
    var taken = Table<UInt32>(repeating: 0, count: 4)
    slots[0].flushBefore = true
    for _ in 0..<20_000 {
      lane.submit(0)
      while !lane.hasCompleted { sched_yield() }
      try #require(lane.takeCompleted(into: &taken) == 1)
      let isStillReadable = lane.wakeUp.drain()
      try #require(!isStillReadable)
    }
    lane.drain()
  }
}
