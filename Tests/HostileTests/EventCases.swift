// SPDX-License-Identifier: Apache-2.0
//
// Cases 12, 14, 15 and 16 of the hostile backend: events that come, that do not, and notifications.

import HostileBackend
import Platform
import Testing
import Xen

@testable import XbdFront

@Suite struct EventCases {
  @Test func case12_answersWithoutEventsAreFoundAndEventsWithoutAnswersAreHarmless() throws {
    let victim = try Victim(Plan([.noEvents]))
    let began = MonotonicClock.nanoseconds()
    for index in 0..<8 {
      #expect(
        victim.perform(.read, index * 4096, 4096)?.data == victim.backend.disk.contents(index * 4096, 4096))
    }
    // Each is found by the look that the time brings.
    #expect(MonotonicClock.nanoseconds() - began < 15_000_000_000)
    victim.backend.follow(Plan())
    for _ in 0..<5 {
      victim.backend.perform { $0.notify() }
      victim.run(milliseconds: 30)
    }
    #expect(victim.queue.counters.spuriousEvents > 0)
    victim.expectWorking()
    victim.stop()
  }

  @Test func case14_suppressedNotificationsAreRepeatedByTheTime() throws {
    let victim = try Victim(Plan([.suppressNotifications], after: 1))
    #expect(victim.status(.read, 0, 4096) == .okay)
    for index in 0..<5 {
      #expect(
        victim.perform(.read, index * 4096, 4096)?.data == victim.backend.disk.contents(index * 4096, 4096))
    }
    #expect(victim.queue.counters.notificationsRepeated >= 4)
    victim.stop()
  }

  @Test func case14_aBackendThatAlwaysWantsNotificationsGetsOneForEachPublishAtMost() throws {
    let victim = try Victim(Plan([.demandNotifications]))
    for index in 0..<100 { #expect(victim.status(.read, index * 512, 512) == .okay) }
    let counters = victim.queue.counters
    #expect(counters.notificationsSent <= 100)
    #expect(counters.notificationsRepeated < 20)
    victim.stop()
  }

  @Test func case14_aSilentBackendIsNotNotifiedMoreAndMore() throws {
    let victim = try Victim(Plan([.neverAnswer(every: 1)]))
    victim.submit(.read, 0, 4096)
    victim.run(milliseconds: 1800)
    // After 0.1, 0.3, 0.7 and 1.5 s.
    let repeated = victim.queue.counters.notificationsRepeated
    #expect((1...5).contains(repeated), "\(repeated)")
    victim.stop()
  }

  @Test func case15_aStormOfEventsCostsLittleAndAnswersStillCome() throws {
    let victim = try Victim(Plan([.eventStorm]))
    #expect(victim.status(.read, 0, 4096) == .okay)
    let cpu = threadSeconds()
    let before = victim.queue.counters
    victim.run(milliseconds: 2000)
    let used = threadSeconds() - cpu
    let after = victim.queue.counters
    // One event in 16 ms, where a thousand and more would come in each.
    #expect(used < 0.5, "\(used) s of 2 s")
    #expect(after.events - before.events < 1000, "\(after.events - before.events)")
    #expect(after.eventsHeldBack > before.eventsHeldBack)
    #expect(victim.backend.observations.notified > 10_000)
    let began = MonotonicClock.nanoseconds()
    victim.expectWorking()
    #expect(MonotonicClock.nanoseconds() - began < 10_000_000_000)
    victim.stop()
  }

  @Test func case15_aStormOnABrokenDeviceCostsNothing() throws {
    let victim = try Victim(Plan([.eventStorm, .producer(add: 7)], after: 1))
    #expect(victim.status(.read, 0, 4096) == .okay)
    let tag = victim.submit(.read, 0, 4096)
    victim.expectBroken("responses", inFlight: [tag])
    let events = victim.queue.counters.events
    let cpu = threadSeconds()
    victim.run(milliseconds: 500)
    #expect(threadSeconds() - cpu < 0.25)
    #expect(victim.queue.counters.events <= events + 1)
    victim.stop()
  }

  @Test func case16_aClosedChannelLooksLikeSilenceAndTheTimeoutEndsIt() throws {
    // Xen lets notifications through to nowhere: no error says that the other end is gone.
    let victim = try Victim(
      Plan([.closeChannel]), options: Victim.options { $0.requestTimeout = .seconds(3) })
    #expect(victim.status(.read, 0, 4096) == .okay)
    let tag = victim.submit(.read, 0, 4096)
    victim.expectBroken("unanswered", inFlight: [tag])
    #expect(victim.said.with { said in !said.contains { $0.contains("event channel") } })
    victim.stop()
  }
}
