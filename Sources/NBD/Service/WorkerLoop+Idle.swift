// SPDX-License-Identifier: Apache-2.0
//
// What a worker does when nothing is left to do: it spins, lets requests pile up, or sleeps.

internal import CXen
internal import Glibc
internal import Platform

extension WorkerLoop {
  /// Nothing to do: spins or sleeps.
  func idle() {
    takeTime(MonotonicClock.nanoseconds(), due: state.pointee.now)
    let way = wayToSleep(state.pointee.now)
    if way == .plain && state.pointee.spin.shouldSpin() && !state.pointee.isStopping {
      if spin() { return }
    }
    guard target.armWakeup() else { return }
    let before = state.pointee.now
    if way.nanoseconds > 0 {
      counters.add(.gathers)
      var time = timespec(tv_sec: 0, tv_nsec: way.nanoseconds)
      // SAFETY: the kernel reads a local variable, and writes nothing to null.
      unsafe _ = nanosleep(&time, nil)
      look()
      if runQueue.count > 0 || flushQueue.count > 0 { return }
    }
    counters.add(.sleeps)
    if way.isPatient { counters.add(.patientSleeps) }
    stopPolling()
    let due = sleepLimit()
    lookForEvents(milliseconds: milliseconds(until: due))
    let after = MonotonicClock.nanoseconds()
    takeTime(after, due: due)
    _ = target.keepTime(after)
    state.pointee.spin.slept(after &- before)
    checkTimeouts()
  }

  /// Chooses how to sleep, and tells the scheduler.
  private func wayToSleep(_ now: UInt64) -> SleepWay {
    if state.pointee.isStopping { return .plain }
    let isDeep = state.pointee.depth.isDeep
    var way = state.pointee.gather.way(now: now, connections: limiter.count, isDeep: isDeep) {
      ThreadClock.nanoseconds()
    }
    state.pointee.requestsAtOnce = way.requestsAtOnce
    if state.pointee.depth.shouldProbe() { way.nanoseconds = max(way.nanoseconds, DepthPolicy.probe) }
    if !state.pointee.canBePatient { way.isPatient = false }
    if way.isPatient != state.pointee.isPatient {
      ThreadScheduling.setPatient(way.isPatient)
      state.pointee.isPatient = way.isPatient
    }
    return way
  }

  /// Looks for work without sleeping, and lets others use the processor in between: the client that the work comes from
  /// may be waiting for it.
  ///
  /// - Returns: whether some came.
  private func spin() -> Bool {
    counters.add(.spins)
    let start = state.pointee.now
    let limit = state.pointee.spin.maximumNanoseconds
    let hot = state.pointee.hotConnection
    var found = false
    var now = start
    var rounds = 0
    repeat {
      rounds &+= 1
      if hot >= 0 && rounds & 7 != 0 {
        found = receiveNow(hot)
        if found { cameUnwaited(hot) }
      } else {
        look()
      }
      if state.pointee.heldOperations > 0 && target.poll() { found = true }
      found = found || runQueue.count > 0 || flushQueue.count > 0 || mailbox.isWaiting
      now = MonotonicClock.nanoseconds()
      if found { break }
      // On a processor that nobody else wants it comes back at once. Linux yields within a scheduling group only.
      sched_yield()
    } while now &- start < limit
    takeTime(now, due: start)
    counters.add(.spinNanoseconds, now &- start)
    if found {
      counters.add(.spinHits)
      state.pointee.spin.hit(after: now &- start)
    } else {
      state.pointee.spin.miss()
    }
    return found
  }

  /// Until when the thread may sleep; `.max` for ever.
  private func sleepLimit() -> UInt64 {
    var deadline = UInt64.max
    let now = state.pointee.now
    if let target = target.keepTime(now) { deadline = target }
    if state.pointee.isStopping { deadline = min(deadline, state.pointee.stopDeadline, now &+ 20_000_000) }
    // A target may find resources again without waking anyone.
    if waitQueue.count > 0 { deadline = min(deadline, now &+ 10_000_000) }
    if state.pointee.handshakes > 0 {
      let allowed = configuration.handshakeTimeout.nanoseconds
      for index in 0..<connections.count where isInHandshake(connections[index]) {
        deadline = min(deadline, connections[index].pointee.lastProgress &+ allowed)
      }
    }
    return deadline
  }

  /// A sleep's length; nil for ever.
  private func milliseconds(until deadline: UInt64) -> Int32? {
    guard deadline != .max else { return nil }
    let now = state.pointee.now
    let remaining = deadline > now ? deadline &- now : 0
    return Int32(clamping: remaining / 1_000_000 &+ 1)
  }
}
