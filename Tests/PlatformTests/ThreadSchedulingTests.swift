// SPDX-License-Identifier: Apache-2.0

import Glibc
import Platform
import Testing

/// A thread waits for its turn when woken as long as it asks for that, and nobody else does.
@Suite struct ThreadSchedulingTests {
  /// The policies that a thread had, in order, as sched_getscheduler(2) tells them.
  private final class Policies: @unchecked Sendable {
    // Each thread is joined before the next one writes.
    var seen: [Int32] = []
    func note() { seen.append(sched_getscheduler(0)) }
  }

  @Test(.enabled(if: sched_getscheduler(0) == SCHED_OTHER, "somebody chose a policy for the tests"))
  func patienceIsTheThreadsOwnAndEnds() throws {
    let policies = Policies()
    let thread = try DedicatedThread(name: "patient") {
      #expect(ThreadScheduling.canBePatient)
      ThreadScheduling.setPatient(true)
      policies.note()
      #expect(!ThreadScheduling.canBePatient)
      if let child = try? DedicatedThread(name: "child", { policies.note() }) { child.join() }
      ThreadScheduling.setPatient(false)
      policies.note()
    }
    thread.join()
    let batch: Int32 = 3
    #expect(policies.seen == [batch, SCHED_OTHER, SCHED_OTHER])
  }
}
