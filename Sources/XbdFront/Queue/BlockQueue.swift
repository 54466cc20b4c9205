// SPDX-License-Identifier: Apache-2.0
//
// A queue of a connected device, as its one owner thread uses it. The thread runs to completion: it submits what
// it has, calls `poll`, and sleeps on `descriptors` only after `armWakeup` has said that it may.

internal import Blkif
public import CXen
internal import Platform
internal import Synchronization
internal import Xen

/// A backend that runs on the frontend's own thread, so that a request costs no switch of thread.
public protocol InlineBackend: AnyObject, Sendable {
  /// Serves what is in the ring.
  ///
  /// - Returns: whether anything was done.
  func run() -> Bool
  /// Readable when `run` should be called although nothing was published; -1 when that never happens.
  var wakeDescriptor: Int32 { get }
}

/// One queue: a ring, its granted pages and its operations.
///
/// Every call but `wake` comes from the owner thread.
public final class BlockQueue: @unchecked Sendable {
  // SAFETY: the core is touched by the owner thread only; `wakeup` and `control` are safe from any thread. No two uses of the
  // cell overlap: the core never calls its owner back (completions are handed out one by one), and what it does call,
  // wake-ups, does not come here.
  let core: Cell<QueueCore>
  var channels: any EventChannels
  var port: EventChannelPort
  /// Nil while there is no backend: nobody may map a ring of before.
  var ringPages: SharedPages?
  private let wakeup: EventCounter
  let control: QueueControl
  var inlineBackend: (any InlineBackend)? {
    didSet { core.pointee.sharesThread = inlineBackend != nil }
  }
  /// Set by `wake`, so that a poll without one costs no system call.
  private let wasWoken = Atomic<Bool>(false)
  var isArmed = false
  var maskedPort = false
  var reportedViolation = false
  /// The control thread wants to know when nothing is in flight any more.
  var isDraining = false
  private var lastComplaint = ""
  /// Whether operations ever went to or came from another queue.
  var hasRelay = false

  /// Called from `poll` for every operation that ended.
  ///
  /// The callback may begin, submit, cancel and release.
  public var onCompletion: (Completion) -> Void = { _ in }

  /// Called from `poll` when the device has been connected again; a backend on this thread is to be given anew.
  public var onReconnect: () -> Void = {}

  /// Called from `poll` when `descriptors` are others than before: the device has been connected again.
  ///
  /// The first is closed after the call.
  public var onDescriptorsChange: (_ removed: [Int32], _ added: [Int32]) -> Void = { _, _ in }

  /// Makes a queue of what its device has connected.
  ///
  /// - Parameter wakeup: what its owner's thread is woken by.
  /// - Returns: nil when the link was used before.
  convenience init?(
    _ link: QueueLink, control: QueueControl, gate: WriteGate, wakeup: consuming EventCounter
  ) {
    guard let ring = link.takeRing(), let pool = link.takePool() else { return nil }
    self.init(
      core: QueueCore(
        index: control.queue, parameters: link.parameters, ring: ring, pool: pool, gate: gate),
      channels: link.channels, port: link.port, ringPages: link.ringPages, control: control, wakeup: wakeup)
  }

  init(
    core: consuming QueueCore, channels: any EventChannels, port: EventChannelPort, ringPages: SharedPages,
    control: QueueControl, wakeup: consuming EventCounter
  ) {
    self.core = Cell(core)
    self.channels = channels
    self.port = port
    self.ringPages = ringPages
    self.control = control
    self.wakeup = wakeup
    control.attach(wake: { [weak self] in self?.wake() })
    self.core.pointee.gate.register { [weak self] in self?.wake() }
  }

  // MARK: Operations

  /// Takes on a request and finds memory for its payload.
  ///
  /// - Parameter tag: comes back with the completion.
  /// - Returns: the operation, to be submitted or cancelled; nil when resources are short: try again after `poll`.
  ///   A request that cannot succeed is taken on too and fails when it is submitted.
  public func begin(_ request: BlockRequest, tag: UInt64) -> OperationID? {
    core.pointee.begin(request, tag: tag)
  }

  /// The memory of a write that was begun, to be filled, or of a read that completed, to be used.
  ///
  /// - Parameters:
  ///   - byteOffset: where in the request's bytes to start.
  ///   - vectors: filled from the front, for as many pages at most; when they are too few, call again with a greater offset.
  /// - Returns: how many were filled.
  public func vectors(
    of operation: OperationID, from byteOffset: Int, into vectors: UnsafeMutableBufferPointer<iovec>
  ) -> Int {
    // SAFETY: the caller's vectors, which it lends for this call.
    unsafe core.pointee.vectors(of: operation, from: byteOffset, into: vectors)
  }

  /// Lets an operation run.
  public func submit(_ operation: OperationID) { core.pointee.submit(operation) }

  /// Gives up an operation that was begun; nothing on the device changes.
  public func cancel(_ operation: OperationID) { core.pointee.cancel(operation) }

  /// Gives an operation's memory back; its number is of no use afterwards.
  public func release(_ operation: OperationID) { core.pointee.release(operation) }

  /// Operations submitted and not yet reported.
  public var unfinishedOperations: Int { core.pointee.unfinished }

  // MARK: Running

  /// Moves forward what can move, and reports what ended.
  ///
  /// With a backend on this thread it comes back after each part of a large operation (`hasMore`), so that its owner can
  /// look after others.
  ///
  /// - Returns: whether any operation ended, or memory came back for which `begin` had sent its caller away.
  @discardableResult
  public func poll() -> Bool {
    if wasWoken.load(ordering: .relaxed) {
      wasWoken.store(false, ordering: .sequentiallyConsistent)
      wakeup.drain()
    }
    var wasEvent = false
    if isArmed {
      isArmed = false
      wasEvent = takeEvents()
    }
    if control.hasNews { applyNews() }
    var ended = false
    while true {
      core.pointee.hasWork = false
      core.pointee.retryParked()
      if hasRelay { relay() }
      core.pointee.issuePending()
      publish()
      let served = inlineBackend?.run() ?? false
      let answered = core.pointee.reap()
      // Held once for all of them, not for each.
      let report = onCompletion
      while let completion = core.pointee.nextCompletion() {
        ended = true
        report(completion)
      }
      if wasEvent, !answered {
        core.pointee.counters.spuriousEvents &+= 1
        core.pointee.time.emptyEvent()
      }
      wasEvent = false
      if core.pointee.hasPaused {
        core.pointee.hasPaused = false
        core.pointee.hasWork = true
        break
      }
      if !served && !answered && !core.pointee.hasWork { break }
    }
    if core.pointee.pagesCameBack {
      core.pointee.pagesCameBack = false
      ended = true
    }
    if hasRelay { core.pointee.deliverAnswers() }
    reportTrouble()
    if isDraining, core.pointee.isQuiet {
      isDraining = false
      control.reportDrained()
    }
    return ended
  }

  /// Whether the last `poll` came back with more to do: another is due before the thread sleeps.
  public var hasMore: Bool { core.pointee.hasWork }

  /// Asks to be woken through `descriptors`.
  ///
  /// Called before the thread sleeps.
  ///
  /// - Returns: false when there is work already: call `poll` instead of sleeping.
  public func armWakeup() -> Bool {
    // A backend on this thread is run by `poll`, not by events; what it still works on wakes its own descriptor.
    if core.pointee.hasWork { return false }
    if inlineBackend != nil { return !control.hasNews }
    isArmed = true
    // Nothing that a backend sends to a broken queue is of interest.
    guard !core.pointee.isDead else { return !control.hasNews }
    if maskedPort { letEventsThrough() }
    return core.pointee.ring.armNotification() && !control.hasNews
  }

  /// Tells the queue the time, for what nothing else tells it: a backend that was not notified, or does not answer,
  /// or sends events for nothing.
  ///
  /// Called before the thread sleeps and after, with a look at the clock that its loop takes anyway. An owner that
  /// never calls it gets a queue without timeouts, repeated notifications and protection from storms of events.
  ///
  /// - Parameter now: the monotonic clock in nanoseconds; it need not be exact.
  /// - Returns: when to call `poll` and this again, at the latest; nil when only descriptors matter.
  public func keepTime(_ now: UInt64) -> UInt64? {
    let duty = core.pointee.keepTime(now)
    if duty.mustKick, inlineBackend == nil {
      core.pointee.counters.notificationsRepeated &+= 1
      notify()
    }
    return duty.next == .max ? nil : duty.next
  }

  /// Descriptors that become readable when `poll` should be called; `onDescriptorsChange` tells of others.
  ///
  /// Events of a backend on this thread say nothing that `poll` does not see: nobody takes them, so a thread that
  /// waited for them would never sleep again.
  public var descriptors: [Int32] {
    guard let inlineBackend else { return [wakeup.fileDescriptor, channels.fileDescriptor] }
    let descriptor = inlineBackend.wakeDescriptor
    return descriptor >= 0 ? [wakeup.fileDescriptor, descriptor] : [wakeup.fileDescriptor]
  }

  /// Makes the owner thread call `poll` soon.
  ///
  /// Safe from any thread.
  public func wake() {
    // In this order: a flag taken down before the signal came would leave the descriptor readable for ever.
    wakeup.signal()
    wasWoken.store(true, ordering: .sequentiallyConsistent)
  }

  /// Lets a backend of the same process run on this queue's thread.
  ///
  /// Before the first `poll`, or from `onReconnect`.
  public func runInline(_ backend: any InlineBackend) { inlineBackend = backend }

  // MARK: Facts

  /// What the queue was connected with, as it stands now.
  public var parameters: QueueParameters { core.pointee.parameters }

  /// What the queue has done so far.
  public var counters: QueueCounters {
    var counters = core.pointee.counters
    // What earlier pools did is in the counters already.
    counters.grantsMade &+= core.pointee.pool.grantsMade
    counters.grantsEnded &+= core.pointee.pool.grantsEnded
    counters.grantsReused &+= core.pointee.pool.grantsReused
    counters.poolHighWater = UInt64(core.pointee.pool.highWater)
    counters.poolPages = UInt64(core.pointee.pool.sharedPages)
    counters.poolBound = UInt64(core.pointee.pool.bound)
    return counters
  }

  /// What the queue has done so far, for any thread while the owner runs.
  ///
  /// - Parameter milliseconds: how long the owner may take; after that it is what the owner answered last.
  public func snapshot(milliseconds: Int = 100) -> QueueCounters {
    guard let answer = try? Handoff<QueueCounters>() else { return control.lastCounters }
    control.tell { $0.wantsCounters = answer }
    return answer.wait(milliseconds: milliseconds) ?? control.lastCounters
  }

  /// How the backend broke the protocol, if it did.
  public var violation: ProtocolViolation? { core.pointee.broken }

  // MARK: Inside

  private func publish() {
    guard core.pointee.ring.hasUnpublished, !core.pointee.isDead else { return }
    switch core.pointee.ring.publish() {
    case .required:
      core.pointee.counters.notificationsSent &+= 1
      notify()
    case .notRequired:
      core.pointee.counters.notificationsSuppressed &+= 1
    }
  }

  private func notify() {
    do throws(XenError) { try channels.notify(port) } catch { complain(error.message) }
  }

  /// Unmasks the port, unless its events have brought nothing for a while: then they wait (XSA-391).
  private func letEventsThrough() {
    if core.pointee.time.isHolding {
      core.pointee.counters.eventsHeldBack &+= 1
      return
    }
    maskedPort = false
    do throws(XenError) { try channels.unmask(port) } catch { complain(error.message) }
  }

  /// Reports a failure of the seam, but not the same one for each request.
  private func complain(_ message: String) {
    guard message != lastComplaint else { return }
    lastComplaint = message
    control.send(message)
  }

  /// Takes the events that woke us; the port stays masked until the ring has been looked through.
  ///
  /// - Returns: whether there were any.
  private func takeEvents() -> Bool {
    var any = false
    do throws(XenError) {
      while try channels.nextPending() != nil {
        any = true
        maskedPort = true
        core.pointee.counters.events &+= 1
      }
    } catch {
      complain(error.message)
    }
    return any
  }
}
