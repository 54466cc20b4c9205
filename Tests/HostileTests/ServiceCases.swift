// SPDX-License-Identifier: Apache-2.0
//
// Cases 15 and 38 of the hostile backend with everything in front of it that `serve` has: the NBD service's worker owns
// the queue, and its clients are on a socket.

import Glibc
import HostileBackend
import Platform
import Testing

@testable import XbdFront

@Suite struct ServiceCases {
  @Test(arguments: [Fault.eventStorm, .watchStorm])
  func case15And38_stormsCostTheServiceLittleAndItsClientsGoOn(storm: Fault) throws {
    let victim = try ServedVictim()
    let busy = try NBDClient(victim.path)
    let other = try NBDClient(victim.path)
    #expect(try busy.read(0, 4096) == victim.backend.disk.contents(0, 4096))
    let calm = try exchange(victim, busy, other, seed: 0)
    victim.backend.follow(Plan([storm]))
    // A backend that means to storm begins with the next request, or at once.
    _ = try busy.read(0, 512)

    // Nobody asks for anything: what the storm costs by itself.
    #expect(victim.worker.seconds > 0 && victim.control.seconds > 0)
    let (before, began) = (victim.processorSeconds, MonotonicClock.nanoseconds())
    let (looks, events) = (victim.looks.with { $0 }, victim.device.queues[0].snapshot().events)
    sleepMilliseconds(2000)
    let took = MonotonicClock.nanoseconds() - began
    let share = (victim.processorSeconds - before) / (Double(took) / 1e9)
    #expect(share < 0.5, "\(share) of a processor")
    // A busy machine hides what a storm would take; what was looked at does not.
    #expect(victim.looks.with { $0 } - looks <= WatchPacer.allowed(in: took))
    let counters = victim.device.queues[0].snapshot()
    // One in 16 ms, and twice as many for slow beginnings.
    #expect(counters.events - events <= took / 8_000_000 + 50, "\(counters.events - events) events")
    #expect((counters.eventsHeldBack > 0) == (storm == .eventStorm))

    // And with clients: all is done in a time that a storm does not decide.
    let stormy = try exchange(victim, busy, other, seed: 100)
    #expect(stormy < 25_000_000_000 + 10 * calm, "\(stormy) ns, \(calm) ns before")
    // A machine that is busy with other things takes longer to make a storm of it.
    var isStorm: Bool {
      let seen = victim.backend.observations
      return storm == .eventStorm ? seen.notified > 10_000 : seen.stateWrites > 1000
    }
    let latest = MonotonicClock.nanoseconds() + UInt64(patience * 1e9)
    while !isStorm, MonotonicClock.nanoseconds() < latest { sleepMilliseconds(10) }
    #expect(isStorm, "no storm: \(victim.backend.observations)")
    guard case .connected = victim.device.state else {
      Issue.record("\(victim.device.state)")
      return victim.stop()
    }
    victim.backend.follow(Plan())
    victim.stop()
  }

  /// A hundred writes and two hundred reads of two clients, one after another, each byte looked at; how long they took,
  /// in nanoseconds.
  private func exchange(
    _ victim: ServedVictim, _ busy: NBDClient, _ other: NBDClient, seed: UInt64
  ) throws -> UInt64 {
    let began = MonotonicClock.nanoseconds()
    for index in 0..<100 {
      let place = index % 40 * 8192
      let data = Victim.bytes(4096, seed: seed + UInt64(index))
      try other.write((1 << 20) + place, data)
      #expect(try other.read((1 << 20) + place, 4096) == data)
      #expect(try busy.read(place, 4096) == victim.backend.disk.contents(place, 4096))
    }
    return MonotonicClock.nanoseconds() - began
  }

  private func sleepMilliseconds(_ count: UInt64) {
    let end = MonotonicClock.nanoseconds() &+ count * 1_000_000
    while MonotonicClock.nanoseconds() < end { usleep(5000) }
  }
}

extension WatchPacer {
  /// The most looks that it may allow in a time.
  static func allowed(in nanoseconds: UInt64) -> Int { burst + Int(nanoseconds / interval) + 2 }
}
