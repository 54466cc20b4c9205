// SPDX-License-Identifier: Apache-2.0
//
// What a queue does when its owner tells it the time: see StallWatch.swift for when.

internal import Blkif
internal import Platform

extension QueueCore {
  /// Takes the time and gives up requests that are too old.
  ///
  /// - Returns: whether the backend must be notified again, and when to call again.
  mutating func keepTime(_ now: UInt64) -> StallWatch.Duty {
    guard !isDead else {
      // Nobody has anything to answer, but the clock goes on: what is asked of the next backend is asked then, not when
      // the last one was lost.
      _ = time.tell(now, inFlight: 0, answered: counters.responses)
      return StallWatch.Duty()
    }
    var duty = time.tell(now, inFlight: inFlight.count, answered: counters.responses)
    if duty.mustCheckAges {
      // What has been answered is not old, whenever somebody looks.
      _ = reap()
      checkAges()
      // What has ended is reported by `poll`.
      if hasWork || isDead { duty = StallWatch.Duty(next: now) }
    }
    return duty
  }

  /// Breaks the queue if its oldest request has waited for too long.
  private mutating func checkAges() {
    var place: Int32 = -1
    for index in 0..<Int32(inFlight.capacity) where inFlight.records[index].operation >= 0 {
      if place < 0 || inFlight.records[index].issuedAt < inFlight.records[place].issuedAt {
        place = index
      }
    }
    guard place >= 0 else { return }
    let record = inFlight.records[place]
    guard time.now &- record.issuedAt >= time.timeout else { return time.oldest(since: record.issuedAt) }
    breakDown(
      .unanswered(
        outstanding: inFlight.count, oldest: describe(record), seconds: time.timeout / 1_000_000_000))
  }

  private func describe(_ record: InFlightRecord) -> String {
    let operation = operations[record.operation]
    let place = "\(record.count >> 9) sectors at \((operation.alignedOffset &+ record.offset) >> 9)"
    return switch record.role {
    case .data: "a \(record.wireOperation == BlockOperation.read.rawValue ? "read" : "write") of \(place)"
    case .edge: "a read of \(place)"
    case .flush: "a flush"
    case .discard: "a discard"
    }
  }
}
