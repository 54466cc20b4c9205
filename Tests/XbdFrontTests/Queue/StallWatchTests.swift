// SPDX-License-Identifier: Apache-2.0
//
// What the time makes a queue do, with a clock that the test turns by hand.

import Testing

@testable import XbdFront

@Suite struct StallWatchTests {
  static let millisecond: UInt64 = 1_000_000
  static let start: UInt64 = 5_000_000_000

  @Test func nothingInFlightNeedsNoTime() {
    var watch = StallWatch(timeout: 1_000_000_000)
    for step in 0..<100 as Range<UInt64> {
      #expect(watch.tell(Self.start + step << 30, inFlight: 0, answered: 7) == StallWatch.Duty())
    }
  }

  @Test func silenceIsMetWithKicksThatBecomeRarer() {
    var watch = StallWatch(timeout: 0)
    var kicks: [UInt64] = []
    var now = Self.start
    while now < Self.start + 60_000 * Self.millisecond {
      let duty = watch.tell(now, inFlight: 3, answered: 7)
      if duty.mustKick { kicks.append((now - Self.start) / Self.millisecond) }
      #expect(duty.next > now && duty.next <= now + StallWatch.longestKick)
      now = duty.next
    }
    #expect(kicks == [100, 300, 700, 1500, 3100, 6300, 12700, 22700, 32700, 42700, 52700])
  }

  @Test func everyAnswerBeginsTheSilenceAnew() {
    var watch = StallWatch(timeout: 0)
    for step in 0..<1000 as Range<UInt64> {
      let duty = watch.tell(Self.start + step * 90 * Self.millisecond, inFlight: 3, answered: step)
      #expect(!duty.mustKick)
    }
  }

  @Test func agesAreLookedAtWhenOneCanBeDueAndNotBefore() {
    var watch = StallWatch(timeout: 1000 * Self.millisecond)
    #expect(!watch.tell(Self.start, inFlight: 1, answered: 0).mustCheckAges)
    #expect(!watch.tell(Self.start + 999 * Self.millisecond, inFlight: 1, answered: 5).mustCheckAges)
    let due = watch.tell(Self.start + 1000 * Self.millisecond, inFlight: 1, answered: 9)
    #expect(due.mustCheckAges)
    watch.oldest(since: Self.start + 600 * Self.millisecond)
    #expect(!watch.tell(Self.start + 1599 * Self.millisecond, inFlight: 1, answered: 20).mustCheckAges)
    #expect(watch.tell(Self.start + 1600 * Self.millisecond, inFlight: 1, answered: 30).mustCheckAges)
  }

  @Test func emptyEventsAreHeldBackAfterAWhileAndNotForEver() {
    var watch = StallWatch(timeout: 0)
    _ = watch.tell(Self.start, inFlight: 0, answered: 0)
    for _ in 0..<StallWatch.harmlessEvents { watch.emptyEvent() }
    #expect(!watch.isHolding)
    watch.emptyEvent()
    #expect(watch.isHolding)
    #expect(watch.tell(Self.start, inFlight: 0, answered: 0).next == Self.start + StallWatch.firstHold)
    _ = watch.tell(Self.start + StallWatch.firstHold, inFlight: 0, answered: 0)
    #expect(!watch.isHolding)
    var now = Self.start
    for _ in 0..<20 {
      watch.emptyEvent()
      now = max(now, watch.tell(now, inFlight: 0, answered: 0).next)
      _ = watch.tell(now, inFlight: 0, answered: 0)
      #expect(!watch.isHolding)
    }
    watch.emptyEvent()
    #expect(watch.tell(now, inFlight: 0, answered: 0).next == now + StallWatch.longestHold)
    watch.progress()
    #expect(!watch.isHolding)
  }

  @Test func withoutAClockNothingIsHeldBack() {
    var watch = StallWatch(timeout: 0)
    for _ in 0..<1000 { watch.emptyEvent() }
    #expect(!watch.isHolding)
  }

  @Test func looksComeAtOnceUntilThereAreTooMany() {
    var pacer = WatchPacer()
    var now = Self.start
    for _ in 0..<WatchPacer.burst {
      #expect(pacer.next(now) == now)
      pacer.spend(now)
    }
    #expect(pacer.next(now) == now + WatchPacer.interval)
    var looks = 0
    let end = now + 10_000 * Self.millisecond
    while now < end {
      now = pacer.next(now)
      pacer.spend(now)
      looks += 1
    }
    #expect(looks == 500)
    // A quiet minute earns the burst again, and no more.
    now += 60_000 * Self.millisecond
    for _ in 0..<WatchPacer.burst {
      #expect(pacer.next(now) == now)
      pacer.spend(now)
    }
    #expect(pacer.next(now) > now)
  }
}
