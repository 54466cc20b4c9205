// SPDX-License-Identifier: Apache-2.0
//
// Requests that may not be left unanswered, and a backend that goes meanwhile (`--reconnect --request-timeout`).

import Testing

@testable import XbdFront

@Suite struct RequestTimeoutTests {
  static let second: UInt64 = 1_000_000_000

  @Test(arguments: [false, true])
  func requestsThatAreAskedAgainOfTheNextBackendHaveAllTheirTime(isInFlight: Bool) throws {
    var setup = QueueSetup(isInline: false, keepsWrites: true)
    setup.requestTimeout = .seconds(2)
    let harness = try QueueHarness(setup)
    harness.backend.judge = { _ in .hold }
    var now: UInt64 = 100 * Self.second
    _ = harness.queue.keepTime(now)
    if isInFlight {
      harness.submit(.read, 0, 4096)
      harness.settle()
      #expect(harness.queue.keepTime(now) != nil)
    }
    harness.loseBackend()
    if !isInFlight { harness.submit(.read, 0, 4096) }
    // Nothing is asked of anybody: there is nothing to look after, however long it lasts.
    for _ in 0..<10 {
      now += Self.second
      #expect(harness.queue.keepTime(now) == nil)
    }
    try harness.reconnect()
    harness.settle()
    #expect(harness.backend.held.count == 1)
    now += Self.second
    #expect(harness.queue.keepTime(now) != nil)
    harness.settle()
    #expect(harness.queue.violation == nil)
    #expect(harness.completions.isEmpty)
    harness.backend.answerHeld()
    harness.settle()
    #expect(harness.takeStatuses() == [.okay])

    // The next backend's own silence still counts.
    harness.submit(.read, 0, 4096)
    harness.settle()
    for _ in 0..<3 {
      now += Self.second
      _ = harness.queue.keepTime(now)
    }
    harness.settle()
    #expect(harness.takeStatuses() == [.ioError])
  }

  /// A queue that is told the time, with a read that the backend has.
  private func oneInFlight(timeout seconds: Int, at now: UInt64) throws -> QueueHarness {
    var setup = QueueSetup(isInline: false)
    setup.requestTimeout = .seconds(seconds)
    let harness = try QueueHarness(setup)
    harness.backend.judge = { _ in .hold }
    _ = harness.queue.keepTime(now)
    harness.submit(.read, 0, 4096)
    harness.settle()
    _ = harness.queue.keepTime(now)
    return harness
  }

  /// The domain was paused: the answer has been in the ring for long when the owner looks at the clock again.
  @Test(arguments: [1, 10, 1000] as [UInt64])
  func regression_whatWasAnsweredWhileTheOwnerDidNotRunIsNotOld(seconds: UInt64) throws {
    let now: UInt64 = 100 * Self.second
    let harness = try oneInFlight(timeout: 2, at: now)
    harness.backend.answerHeld()
    _ = harness.runBackend()
    _ = harness.queue.keepTime(now + seconds * Self.second)
    harness.settle()
    #expect(harness.queue.violation == nil)
    #expect(harness.takeStatuses() == [.okay])
  }

  /// It was paused in the middle of a turn: what it asks now is not as old as the last look at the clock.
  @Test func regression_whatIsAskedAfterAPauseIsNotOld() throws {
    let now: UInt64 = 100 * Self.second
    let harness = try oneInFlight(timeout: 10, at: now)
    harness.backend.answerHeld()
    harness.settle()
    harness.submit(.read, 4096, 4096)
    harness.settle()
    _ = harness.queue.keepTime(now + 60 * Self.second)
    harness.settle()
    #expect(harness.queue.violation == nil)
    // A backend that is silent while its frontend runs is still found out.
    for step in 1...200 as ClosedRange<UInt64> {
      _ = harness.queue.keepTime(now + 60 * Self.second + step * Self.second / 10)
      harness.settle()
    }
    #expect(harness.queue.violation != nil)
  }
}
