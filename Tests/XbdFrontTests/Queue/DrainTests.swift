// SPDX-License-Identifier: Apache-2.0

import Platform
import Testing

@testable import XbdFront

@Suite struct DrainTests {
  /// The control thread may be interrupted anywhere in `drain`; here it waits for the letter box in it.
  @Test func nothingIsDrainedBeforeTheRefusalIsThere() throws {
    let harness = try QueueHarness(QueueSetup(isInline: false))
    let control = harness.control
    let (entered, leave) = (Guarded(false), Guarded(false))
    let other = try DedicatedThread(name: "other") {
      control.tell { _ in
        entered.with { $0 = true }
        eventually("the letter box is given up") { leave.with { $0 } }
      }
    }
    eventually("the letter box is taken") { entered.with { $0 } }
    let asking = try DedicatedThread(name: "asking") { control.drain(refusing: .shutdown) }
    let end = MonotonicClock.nanoseconds() + 100_000_000
    while MonotonicClock.nanoseconds() < end { harness.queue.poll() }
    // Were it so, what comes now would be in flight behind the report.
    #expect(harness.reports.drained == 0)
    #expect(harness.status(.read, 0, 512) == .okay)
    leave.with { $0 = true }
    other.join()
    asking.join()
    harness.settle()
    #expect(harness.reports.drained == 1)
    #expect(harness.status(.read, 0, 512) == .shutdown)
    // Each asking is answered once.
    harness.settle()
    #expect(harness.reports.drained == 1)
    control.drain(refusing: nil)
    harness.settle()
    #expect(harness.reports.drained == 2)
  }

  @Test func aQueueThatIsToLetGoOfItsRingIsNotAskedToDrainAnyMore() throws {
    let harness = try QueueHarness(QueueSetup(isInline: false, keepsWrites: true))
    harness.backend.judge = { _ in .hold }
    harness.submit(.read, 0, 512)
    harness.settle()
    harness.control.drain(refusing: nil)
    harness.settle()
    harness.loseBackend()
    harness.backend.judge = { _ in .serve }
    try harness.reconnect()
    harness.settle()
    #expect(harness.takeStatuses() == [.okay])
    #expect(harness.reports.drained == 0)
  }
}
