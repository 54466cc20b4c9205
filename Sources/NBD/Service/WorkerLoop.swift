// SPDX-License-Identifier: Apache-2.0
//
// One worker's thread. A turn:
//
//   serve the connections that have something  ──► requests ──► target.begin, submit
//   target.poll                                ──► completions ──► lists of replies
//   flush the connections that have replies    ──► sendmsg
//
// and when nothing is left: spin a little if that pays, or arm the target's wake-up and sleep. Mutable state lives
// in memory of its own (`Cell`, `EntryTable`): Swift checks class properties for overlapping access at run time.

internal import CXen
internal import Glibc
internal import Platform
internal import Synchronization
internal import SystemPackage

/// The state of a worker's loop that changes.
struct LoopState {
  /// The device as of this turn, read-only if the export is.
  var geometry: TargetGeometry
  /// The time as of the last look at the clock, in nanoseconds.
  var now: UInt64 = 0
  /// Requests taken in during this turn.
  var batch: UInt64 = 0
  /// Operations that the target has begun and not got back.
  var heldOperations = 0
  /// Something was given back since connections that wait for the target were last tried.
  var somethingReleased = false
  var openConnections = 0
  var turnsUntilClock = 0
  var handshakes = 0
  var isStopping = false
  var stopDeadline = UInt64.max
  /// How the flush that ends the thread ended.
  var finalFlush: TargetStatus?
  var spin: SpinPolicy
  var depth = DepthPolicy()
  var gather: GatherPolicy
  /// The most requests that one receive is to bring (`SleepWay.requestsAtOnce`).
  var requestsAtOnce = SleepWay.plain.requestsAtOnce
  /// The connection that alone was served last, or -1: the one worth looking at while spinning.
  var hotConnection: Int32 = -1
  /// Whether the thread may wait for its turn when it is woken, and whether it does.
  var canBePatient = false
  var isPatient = false
  /// Looks since the event loop was asked last.
  var looksSinceEvents = 0
}

/// The loop of one worker.
///
/// Everything here runs on its thread.
final class WorkerLoop {
  let target: any BlockTarget
  let export: Export
  let configuration: WorkerConfiguration
  let mailbox: WorkerMailbox
  let counters: WorkerCounters
  let limiter: ConnectionLimiter
  let group: WorkerGroup
  let table: RequestTable
  let connections: EntryTable<Connection>
  let state: Cell<LoopState>
  /// Connections to be served.
  let runQueue: IndexQueue
  /// Connections with something to send.
  let flushQueue: IndexQueue
  /// Connections that wait for the target or the table of requests, first come first served.
  let waitQueue: IndexQueue
  /// Connections that are looked at directly (WorkerLoop+Polling.swift).
  let polled: IndexQueue
  /// The memory of the system call at hand.
  let transfer = Cell(TransferList())
  let events: EventLoop

  /// Bytes of a connection's receive buffer: holds the requests of a deep queue at 4 KiB.
  static let bufferSize = 256 << 10
  /// I/O vectors of a payload in one receive: 256 KiB where no two pages are neighbours, more than a Unix socket holds.
  static let receiveVectors = 64
  /// Payload that one connection may begin in a turn before its replies are sent and others are served.
  static let turnBytes = 256 << 10
  /// Read data waiting to be sent beyond which a connection takes in no further requests.
  static let unsentLimit = 1 << 20
  /// Handshake replies waiting to be sent beyond which no further options are looked at.
  static let handshakeLimit = 64 << 10

  /// What an event says when the other side has closed, in whole or in half.
  private static let closing: Readiness = [.peerClosed, .hangup, .error]
  /// What an event says when a receive would not wait.
  private static let receivable: Readiness = [.readable, .peerClosed, .hangup, .error]
  private static let wakeToken = UInt64.max
  private static let targetToken = UInt64.max - 1

  init(
    target: any BlockTarget, export: Export, configuration: WorkerConfiguration, mailbox: WorkerMailbox,
    counters: WorkerCounters, limiter: ConnectionLimiter, group: WorkerGroup, events: consuming EventLoop
  ) {
    self.target = target
    self.export = export
    self.configuration = configuration
    self.mailbox = mailbox
    self.counters = counters
    self.limiter = limiter
    self.group = group
    self.events = events
    let count = max(configuration.maximumConnections, 1)
    table = RequestTable(count: Int32(clamping: max(configuration.maximumRequests, 1)))
    runQueue = IndexQueue(capacity: count)
    flushQueue = IndexQueue(capacity: count)
    waitQueue = IndexQueue(capacity: count)
    polled = IndexQueue(capacity: count)
    connections = EntryTable(count: count) { _ in Connection() }
    state = Cell(
      LoopState(
        geometry: target.geometry,
        spin: SpinPolicy(
          maximumNanoseconds: UInt64(max(configuration.maximumSpinMicroseconds, 0)) &* 1000),
        gather: GatherPolicy(processors: sysconf(Int32(_SC_NPROCESSORS_ONLN)))))
  }

  /// Watches the wake-up and the target.
  ///
  /// Before `run`, on any thread.
  static func prepare(_ events: borrowing EventLoop, _ mailbox: WorkerMailbox, _ descriptors: [Int32])
    throws(Errno)
  {
    try events.add(mailbox.fileDescriptor, .readable, token: wakeToken)
    for descriptor in descriptors { try events.add(descriptor, .readable, token: targetToken) }
  }

  /// The target has other descriptors.
  private func watch(instead removed: [Int32], _ added: [Int32]) {
    for descriptor in removed { events.remove(descriptor) }
    // One that cannot be watched leaves the target without a wake-up; what polls it anyway still moves it.
    for descriptor in added { try? events.add(descriptor, .readable, token: Self.targetToken) }
  }

  /// Runs until told to stop.
  func run() -> WorkerOutcome {
    // The target keeps the loop alive until `finish` takes this back.
    target.onCompletion = { tag, operation, status in self.complete(tag, operation, status) }
    target.onDescriptorsChange = { removed, added in self.watch(instead: removed, added) }
    state.pointee.now = MonotonicClock.nanoseconds()
    // `GatherPolicy` sleeps for less than the 50 µs that a timer may be late otherwise.
    _ = cxen_set_timer_slack(1000)
    state.pointee.canBePatient = ThreadScheduling.canBePatient
    while true {
      turn()
      if state.pointee.isStopping && stopIfDone() { break }
      let mayGoOn = waitQueue.count > 0 && state.pointee.somethingReleased
      if runQueue.count > 0 || flushQueue.count > 0 || mayGoOn || target.hasMore {
        look()
      } else {
        idle()
      }
    }
    return finish()
  }

  private func turn() {
    counters.add(.turns)
    if mailbox.isWaiting { takeMessages() }
    state.pointee.turnsUntilClock -= 1
    if state.pointee.turnsUntilClock <= 0 {
      // A loop that is never idle still has to know the time, roughly.
      state.pointee.turnsUntilClock = 64
      takeTime(MonotonicClock.nanoseconds(), due: state.pointee.now)
      _ = target.keepTime(state.pointee.now)
      checkTimeouts()
    }
    state.pointee.geometry = target.geometry
    if export.isReadOnly { state.pointee.geometry.isReadOnly = true }
    state.pointee.batch = 0
    // Those that wait for the target go first, in their order; the others may not overtake them.
    wakeWaiting()
    let served = runQueue.count
    // A connection that closes leaves the queue, which may then run out early.
    for _ in 0..<served where runQueue.count > 0 { serve(runQueue.removeFirst()) }
    if target.poll() { state.pointee.somethingReleased = true }
    for _ in 0..<flushQueue.count where flushQueue.count > 0 { flush(flushQueue.removeFirst()) }
    if state.pointee.batch > 0 {
      state.pointee.spin.observe(batch: state.pointee.batch)
      state.pointee.depth.observe(batch: state.pointee.batch, connections: state.pointee.openConnections)
      state.pointee.gather.observe(state.pointee.batch)
    }
  }

  /// Takes the events that there are, or waits for some.
  ///
  /// A wait is for connections that the event loop has; those that it has not are given back to it before.
  func lookForEvents(milliseconds: Int32?) {
    let sleeps = milliseconds != 0
    let count = events.wait(milliseconds: milliseconds)
    for index in 0..<count {
      let event = events.event(index)
      if event.token == Self.wakeToken { takeMessages() }
      if event.token >= Self.targetToken { continue }
      let index = Int32(truncatingIfNeeded: event.token & 0xffff_ffff)
      let connection = connections[index]
      guard connection.pointee.descriptor >= 0,
        connection.pointee.generation == UInt32(truncatingIfNeeded: event.token >> 32)
      else { continue }
      if !event.readiness.isDisjoint(with: Self.closing) {
        connection.pointee.peerClosed = true
        connection.pointee.isSendBlocked = false
        if hasOutput(connection) { enqueueFlush(index) }
      }
      if !event.readiness.isDisjoint(with: Self.receivable) {
        connection.pointee.isReadable = true
        enqueue(index)
        if sleeps { connection.pointee.readyInARow = 0 } else { cameUnwaited(index) }
      }
      if event.readiness.contains(.writable) {
        connection.pointee.isSendBlocked = false
        // Armed for as long as sends keep getting stuck; the first event with nothing to send ends it.
        if hasOutput(connection) { enqueueFlush(index) } else { watchWritable(index, false) }
      }
    }
  }

  func isInHandshake(_ connection: Entry<Connection>) -> Bool {
    connection.pointee.descriptor >= 0 && connection.pointee.phase == .handshake
  }

  /// Takes the time.
  ///
  /// What it comes too late by is no client's delay: the domain was paused, or the process stopped.
  ///
  /// - Parameter due: when the thread was to look at the clock.
  func takeTime(_ now: UInt64, due: UInt64) {
    let (latest, never) = max(due, state.pointee.now).addingReportingOverflow(1_000_000_000)
    if !never, now > latest {
      for index in 0..<connections.count where connections[index].pointee.descriptor >= 0 {
        connections[index].pointee.lastProgress &+= now &- latest
      }
    }
    state.pointee.now = now
  }

  /// Drops clients that never finish their handshake, and those that keep the target's memory from others.
  func checkTimeouts() {
    let now = state.pointee.now
    if state.pointee.handshakes > 0 {
      let allowed = configuration.handshakeTimeout.nanoseconds
      for index in 0..<connections.count where isInHandshake(connections[index]) {
        if now >= connections[index].pointee.lastProgress &+ allowed { close(Int32(index)) }
      }
    }
    if waitQueue.count > 0 {
      let allowed = configuration.stallTimeout.nanoseconds
      for index in 0..<connections.count where connections[index].pointee.descriptor >= 0 {
        let connection = connections[index]
        let keepsMemory = connection.pointee.payloadSlot >= 0 || connection.pointee.replyHead >= 0
        if keepsMemory && now >= connection.pointee.lastProgress &+ allowed { close(Int32(index)) }
      }
    }
  }

  private func takeMessages() {
    for message in mailbox.takeAll() {
      switch message {
      case .adopt(let descriptor): adopt(descriptor)
      case .stop(let deadline):
        state.pointee.isStopping = true
        stopPolling()
        state.pointee.stopDeadline = min(state.pointee.stopDeadline, deadline)
        for index in 0..<connections.count where connections[index].pointee.descriptor >= 0 {
          beginStopping(Int32(index))
        }
      }
    }
  }
}
