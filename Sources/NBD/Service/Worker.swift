// SPDX-License-Identifier: Apache-2.0
//
// One thread that serves connections out of one target: the handle that other threads hold.

internal import Glibc
public import Platform
internal import Synchronization
public import SystemPackage

/// How a worker ended.
public struct WorkerOutcome: Sendable, Equatable {
  /// How the flush ended that closes a writable device; nil when there was none to make, or it got no answer.
  public var finalFlush: TargetStatus?
  /// A flush was due.
  ///
  /// Together with a `finalFlush` of nil: the device did not answer in time.
  public var flushWasDue: Bool
  /// Operations that the target still had when the worker gave up waiting.
  public var abandonedOperations: Int
}

/// A thread that serves NBD connections out of one target.
///
/// Every method may be called from any thread. The target belongs to the worker's thread from the start to `join`.
public final class Worker: Sendable {
  private let mailbox: WorkerMailbox
  private let counters = WorkerCounters()
  private let limiter: ConnectionLimiter
  private let outcome: OutcomeBox
  private let thread: DedicatedThread

  private final class OutcomeBox: Sendable {
    let value = Mutex<WorkerOutcome?>(nil)
  }

  /// Starts a worker.
  ///
  /// - Parameters:
  ///   - name: of the thread, at most 15 bytes of it.
  ///   - target: the device; used by the new thread only.
  ///   - export: under what name, and whether read-only.
  ///   - configuration: bounds and habits.
  /// - Throws: `Errno` when there is no descriptor or thread to be had.
  public convenience init(
    name: String = "nbd", target: sending any BlockTarget, export: Export,
    configuration: WorkerConfiguration = WorkerConfiguration()
  ) throws(Errno) {
    try self.init(
      name: name, target: target, export: export, configuration: configuration,
      limiter: ConnectionLimiter(limit: .max), group: WorkerGroup())
  }

  init(
    name: String, target: sending any BlockTarget, export: Export, configuration: WorkerConfiguration,
    limiter: ConnectionLimiter, group: WorkerGroup
  ) throws(Errno) {
    let mailbox = try WorkerMailbox()
    self.mailbox = mailbox
    self.limiter = limiter
    let outcome = OutcomeBox()
    self.outcome = outcome
    let events = try EventLoop(capacity: 128)
    try WorkerLoop.prepare(events, mailbox, target.descriptors)
    let parts = LoopParts(target: target, events: events)
    let counters = counters
    group.enter()
    do throws(Errno) {
      thread = try DedicatedThread(name: name) {
        guard let target = parts.target.take(), let events = parts.events.take() else { return }
        let loop = WorkerLoop(
          target: target, export: export, configuration: configuration, mailbox: mailbox, counters: counters,
          limiter: limiter, group: group, events: events)
        let result = loop.run()
        outcome.value.withLock { $0 = result }
      }
    } catch {
      group.leave()
      throw error
    }
  }

  /// Hands a connected stream socket to the worker, which owns and closes it from now on.
  ///
  /// - Returns: false when the worker has ended; the socket was closed.
  @discardableResult
  public func adopt(_ connection: consuming OwnedDescriptor) -> Bool {
    guard limiter.enter() else { return false }
    return adoptCounted(connection)
  }

  /// The same for a connection that the limiter has counted in.
  func adoptCounted(_ connection: consuming OwnedDescriptor) -> Bool {
    let descriptor = connection.release()
    if mailbox.post(.adopt(descriptor)) { return true }
    _ = Glibc.close(descriptor)
    limiter.leave()
    return false
  }

  /// Asks the worker to end: it answers what is in flight, refuses what comes now with ESHUTDOWN, closes each
  /// connection as it falls silent, and flushes the device.
  ///
  /// - Parameter gracePeriod: after this all connections are closed whatever they still wait for. Zero closes them
  ///   at once. A later call can only shorten it.
  public func stop(gracePeriod: Duration = .seconds(5)) {
    let now = MonotonicClock.nanoseconds()
    let (deadline, overflow) = now.addingReportingOverflow(gracePeriod.nanoseconds)
    _ = mailbox.post(.stop(deadline: overflow ? .max : deadline))
  }

  /// Waits until the worker has ended after `stop`.
  ///
  /// - Returns: how it ended.
  @discardableResult
  public func join() -> WorkerOutcome {
    thread.join()
    return outcome.value.withLock { $0 }
      ?? WorkerOutcome(finalFlush: nil, flushWasDue: false, abandonedOperations: 0)
  }

  /// What was counted so far.
  public func statistics() -> WorkerStatistics { counters.snapshot() }

  /// Carries what only the new thread uses into it.
  ///
  /// `@unchecked`: filled before the thread starts, emptied once by it.
  private final class LoopParts: @unchecked Sendable {
    var target: (any BlockTarget)?
    var events: EventLoop?

    init(target: any BlockTarget, events: consuming EventLoop) {
      self.target = target
      self.events = consume events
    }
  }
}
