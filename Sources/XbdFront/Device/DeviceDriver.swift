// SPDX-License-Identifier: Apache-2.0
//
// Performs what the state machine decides: one control thread per device, which owns the xenstore connection,
// watches the backend's state, keeps the time, and tells the queues.

internal import Blkif
internal import Logging
internal import Platform
internal import Synchronization
internal import SystemPackage
internal import Xen

/// What the control thread finds in its letter box.
enum DriverMessage: Sendable {
  case report(QueueReport)
  /// The user wants the device closed; when that is to be over, if it has to be earlier than the options say.
  case close(by: UInt64?)
  /// The backend's program has ended, and how.
  case backendDied(String)
  /// Its nodes were made anew, for another one.
  case backendReplaced
}

/// The control thread's state and its loop; what it does is in DeviceDriver+Actions.swift.
///
/// Used by that thread only, after `init`.
final class DeviceDriver {
  var location: DeviceLocation
  let options: FrontendOptions
  let logger: Logger
  let shared: DeviceShared
  let system: any XenSystem
  let store: any XenStore
  var machine: FrontendStateMachine
  var connections: [QueueConnection] = []
  /// The letter boxes of the queues, which outlive their connections.
  var controls: [QueueControl] = []
  /// What the queues will go on with, between `connect` and `serve`.
  var links: [QueueLink] = []
  let gate = WriteGate()
  /// Makes what a queue is woken by; a test has it fail.
  var makeWakeup: () throws(Errno) -> EventCounter = { () throws(Errno) in try EventCounter() }
  var transport: TransportParameters?
  var features: DeviceFeatures?
  /// The sector of the backend that is connected, which may be smaller than the device's.
  var backendSectorSize: Int?
  var drained: Set<Int> = []
  var suspended: Set<Int> = []
  /// What our own state node says unless somebody else has written it.
  var written: XenbusState?
  /// The domain's number, which a migration may change; empty where there is no such node.
  var domain: [UInt8]?
  /// The domain was restored, and the state machine does not know yet.
  private var isRestored = false
  var deadline: UInt64?
  /// When the closing that has begun is to be over, whoever has not answered by then.
  var closeDeadline: UInt64?
  var graceDeadline: UInt64?
  var reconnectDeadline: UInt64?
  /// Queues whose pool has met the domain's limit, and when to try again.
  var limited: Set<Int> = []
  var growDeadline: UInt64?
  /// What was said of each of them last.
  private var limitTexts: [Int: String] = [:]
  private var pacer = WatchPacer()
  /// Watches that fired and were not followed yet, and when they may be.
  private var backendMoved = false
  private var frontendMoved = false
  private var lookDeadline: UInt64?
  /// Readable when the device is not wanted any more; nil once it is connected.
  private var cancellation: Int32?
  private static let cancellationToken: UInt64 = 2

  init(
    system: any XenSystem, store: any XenStore, location: DeviceLocation, options: FrontendOptions,
    logger: Logger, shared: DeviceShared, cancellation: Int32? = nil
  ) {
    self.cancellation = cancellation
    self.system = system
    self.store = store
    self.location = location
    self.options = options
    self.logger = logger
    self.shared = shared
    machine = FrontendStateMachine(reconnects: options.reconnects)
  }

  // MARK: The thread

  func run() {
    do throws(XbdError) {
      var loop = try watch()
      domain = try bytes("domid")
      perform(
        machine.handle(.started(own: try state(location.frontendState), backend: try backendState())))
      while machine.phase != .finished {
        try turn(&loop)
      }
    } catch {
      // Without xenstore there is no handshake left to go through, but whoever waits for requests is told.
      perform(machine.handle(.storeLost(error)))
    }
    shared.finished()
  }

  private func watch() throws(XbdError) -> EventLoop {
    do throws(XenError) {
      try store.watch(location.backendState, token: "backend")
      try store.watch(location.frontend, token: "frontend")
    } catch {
      throw XbdError(error, during: "watching the states of \(location.frontend)")
    }
    do throws(Errno) {
      let loop = try EventLoop(capacity: 4)
      try loop.add(store.fileDescriptor, .readable, token: 0)
      try loop.add(shared.mailboxDescriptor, .readable, token: 1)
      if let cancellation { try loop.add(cancellation, .readable, token: Self.cancellationToken) }
      return loop
    } catch {
      throw XbdError(.system, "making the control thread's event loop: \(error)")
    }
  }

  private func turn(_ loop: inout EventLoop) throws(XbdError) {
    if shared.isConnected { endCancellation(&loop) }
    let events = loop.wait(milliseconds: timeout())
    if (0..<events).contains(where: { loop.event($0).token == Self.cancellationToken }) {
      endCancellation(&loop)
      shared.cancel()
      perform(machine.handle(.closeRequested))
    }
    for message in shared.takeMessages() { try receive(message) }
    try receiveWatches(&loop)
    let now = MonotonicClock.nanoseconds()
    if let grace = graceDeadline, now >= grace {
      graceDeadline = nil
      perform(machine.handle(.graceExpired))
    }
    if let deadline, now >= deadline {
      self.deadline = nil
      perform(machine.handle(.timedOut))
    }
    if let reconnect = reconnectDeadline, now >= reconnect {
      reconnectDeadline = nil
      let seconds = options.reconnectTimeout.nanoseconds / 1_000_000_000
      perform(machine.handle(.reconnectExpired("no backend has connected for \(seconds) s")))
    }
    if let grow = growDeadline, now >= grow { growPools() }
  }

  private func endCancellation(_ loop: inout EventLoop) {
    if let descriptor = cancellation { loop.remove(descriptor) }
    cancellation = nil
  }

  private func timeout() -> Int32? {
    let deadlines = [deadline, graceDeadline, reconnectDeadline, growDeadline, lookDeadline]
    guard let first = deadlines.compactMap({ $0 }).min() else { return Self.heartbeat }
    let now = MonotonicClock.nanoseconds()
    return first <= now ? 0 : min(Self.heartbeat, Int32(clamping: (first - now) / 1_000_000 + 1))
  }

  /// The longest sleep, in milliseconds: libxenstore tells nobody that its connection has ended, one has to ask.
  private static let heartbeat: Int32 = 2000

  private func receive(_ message: DriverMessage) throws(XbdError) {
    switch message {
    case .close(let limit):
      if let limit {
        let latest = closeDeadline ?? MonotonicClock.nanoseconds() &+ options.closeTimeout.nanoseconds
        closeDeadline = min(limit, latest)
      }
      perform(machine.handle(.closeRequested))
      // A closing that goes on already is to be over by then as well.
      if let limit, let deadline, isOnTheWayOut { self.deadline = min(deadline, limit) }
    case .backendDied(let sentence):
      perform(machine.handle(.backendDied(sentence)))
    case .backendReplaced:
      perform(machine.handle(.backendReplaced(try backendState())))
    case .report(.drained(let queue)):
      drained.insert(queue)
      if drained.count == controls.count { perform(machine.handle(.drained)) }
    case .report(.suspended(let queue)):
      suspended.insert(queue)
      if suspended.count == controls.count { perform(machine.handle(.suspended)) }
    case .report(.violation(let queue, let violation)):
      let sentence =
        "the device is broken: \(violation) (queue \(queue)); everything in flight has failed"
      // Late news of a ring that was given up since.
      guard machine.phase == .connected || machine.isDraining else { return }
      for control in controls { control.tell { $0.failEverything = .ioError } }
      perform(machine.handle(.violation(sentence)))
    case .report(.limit(let queue, let text)):
      // It comes again with every try to grow: only what is new is worth a word.
      if limitTexts.updateValue(text, forKey: queue) != text {
        logger.warning("\(location.frontend): \(text)")
      }
      limited.insert(queue)
      if growDeadline == nil { growDeadline = MonotonicClock.nanoseconds() &+ Self.growInterval }
    case .report(.message(let text)):
      logger.warning("\(location.frontend): \(text)")
    }
  }

  /// How often a pool that met the domain's limit looks whether that was raised, in nanoseconds.
  private static let growInterval: UInt64 = 5_000_000_000

  /// Lets the queues whose pools are smaller than they were meant to be try once more.
  private func growPools() {
    growDeadline = nil
    for control in controls where limited.contains(control.queue) {
      control.tell { $0.growPool = true }
    }
    // One that fails again reports again.
    limited = []
  }

  /// Far more than the interval between two looks can bring.
  private static let watchEventsPerTurn = 16_384

  /// Many events of one watch are one look at the state, and there are not too many looks.
  private func receiveWatches(_ loop: inout EventLoop) throws(XbdError) {
    do throws(XenError) {
      // Bounded, so that a storm does not keep the thread from everything else.
      for _ in 0..<Self.watchEventsPerTurn {
        guard let event = try store.nextWatchEvent() else { break }
        if event.token == "backend" { backendMoved = true } else { frontendMoved = true }
      }
    } catch {
      throw XbdError(error, during: "reading xenstore watches")
    }
    guard backendMoved || frontendMoved else { return }
    let now = MonotonicClock.nanoseconds()
    let allowed = pacer.next(now)
    if (allowed > now) != (lookDeadline != nil) {
      // While nothing may be looked at, the watches that fire must not wake us either.
      try? loop.modify(store.fileDescriptor, allowed > now ? [] : .readable, token: 0)
    }
    lookDeadline = allowed > now ? allowed : nil
    guard allowed <= now else { return }
    pacer.spend(now)
    try look()
  }

  /// Follows the watches that fired.
  private func look() throws(XbdError) {
    let (frontendFired, backendFired) = (frontendMoved, backendMoved)
    frontendMoved = false
    backendMoved = false
    if frontendFired {
      guard try exists(location.frontend + "/" + Key.backend) else {
        return perform(machine.handle(.directoryRemoved))
      }
    }
    // Whichever fires first: what the old backend's nodes say means nothing after a restore.
    try noticeRestore()
    if isRestored { return try followRestore() }
    guard backendFired else { return }
    let backend = try backendState()
    if options.reconnects, backend != .connected, let online = try online() {
      perform(machine.handle(.online(online)))
    }
    perform(machine.handle(.backendState(backend)))
  }

  /// Looks whether the toolstack has made the device anew, as it does when a domain is restored or has migrated: our
  /// own state is not what we wrote, or the domain has another number (blkif.h says nothing of it; libxl does so).
  ///
  /// Event channels are only let go of when this has been looked at.
  func noticeRestore() throws(XbdError) {
    let domain = try bytes("domid")
    if domain == self.domain {
      guard let written, written != .initialising, try state(location.frontendState) == .initialising else {
        return
      }
    }
    self.domain = domain
    written = nil
    isRestored = true
    do throws(XenError) {
      try system.domainWasRestored()
    } catch {
      logger.warning("\(location.frontend): \(error)")
    }
  }

  /// Finds the device's directories again and begins anew.
  private func followRestore() throws(XbdError) {
    isRestored = false
    let old = location.backendState
    location = try DeviceLocation(again: location, in: store)
    // The same path is watched still; xenstore refuses to watch it twice.
    if location.backendState != old {
      try? store.unwatch(old, token: "backend")
      do throws(XenError) {
        try store.watch(location.backendState, token: "backend")
      } catch {
        throw XbdError(error, during: "watching \(location.backendState)")
      }
    }
    let own = try state(location.frontendState)
    written = own
    perform(machine.handle(.resumed(own: own, backend: try backendState())))
  }
}
