// SPDX-License-Identifier: Apache-2.0
//
// What the control thread has to say to a queue, taken in at the beginning of a turn: another size, another ring, none at
// all, the end. And what the queue says in return.

internal import Platform
internal import Xen

extension BlockQueue {
  /// Does what the control thread has asked for since the last turn.
  func applyNews() {
    let news = control.takeNews()
    if let status = news.failFirst { core.pointee.giveUp(status) }
    if news.suspend { unlink() }
    if let link = news.link { relink(link) }
    if let relay = news.relay { core.pointee.resume(through: relay) }
    if let sectors = news.sectorCount { core.pointee.parameters.sectorCount = sectors }
    if news.drain { isDraining = true }
    if news.hold { core.pointee.isHolding = true }
    if let refusal = news.refusal { core.pointee.refusal = refusal }
    if let status = news.failEverything { core.pointee.giveUp(status) }
    if !news.relayed.isEmpty { core.pointee.relays.waiting += news.relayed }
    for answer in news.answers { core.pointee.takeAnswer(answer) }
    // Once other queues have come into it, this one looks after them for good.
    if news.relay != nil || !news.relayed.isEmpty { hasRelay = true }
    if news.growPool { core.pointee.pool.tryToGrow() }
    if let answer = news.wantsCounters {
      let counters = counters
      control.lastCounters = counters
      answer.put(counters)
    }
  }

  /// Lets go of the ring, the granted pages and the event channel.
  private func unlink() {
    try? channels.unbind(port)
    maskedPort = false
    let before = descriptors
    inlineBackend = nil
    tellOfChange(from: before)
    core.pointee.suspend()
    isDraining = false
    ringPages = nil
    control.reportSuspended()
  }

  /// Goes on with another ring.
  private func relink(_ link: QueueLink) {
    guard let ring = link.takeRing(), let pool = link.takePool() else { return }
    let before = descriptors
    // Open until nobody waits for it any more.
    let old = channels
    channels = link.channels
    port = link.port
    ringPages = link.ringPages
    isArmed = false
    maskedPort = false
    reportedViolation = false
    core.pointee.resume(parameters: link.parameters, ring: ring, pool: pool)
    onReconnect()
    tellOfChange(from: before)
    withExtendedLifetime(old) {}
  }

  /// Tells the owner how `descriptors` has changed.
  private func tellOfChange(from before: [Int32]) {
    let after = descriptors
    guard after != before else { return }
    onDescriptorsChange(before.filter { !after.contains($0) }, after.filter { !before.contains($0) })
  }

  /// Sends away what has no ring here, and takes in what has none elsewhere.
  func relay() {
    core.pointee.relayPending(control)
    core.pointee.admitGuests()
  }

  /// Tells the device of a limit that was met, and how the backend broke the protocol.
  func reportTrouble() {
    if let message = core.pointee.pool.takeLimitMessage() { control.sendLimit(message) }
    if !reportedViolation, let violation = core.pointee.broken {
      reportedViolation = true
      control.send(violation)
    }
  }
}
