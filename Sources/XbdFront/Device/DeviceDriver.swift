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
  case close
}

/// The control thread's state.
///
/// Used by that thread only, after `init`.
final class DeviceDriver {
  let location: DeviceLocation
  let options: FrontendOptions
  let logger: Logger
  let shared: DeviceShared
  private let system: any XenSystem
  private let store: any XenStore
  private var machine = FrontendStateMachine()
  private var connections: [QueueConnection] = []
  private var transport: TransportParameters?
  private var features: DeviceFeatures?
  private var drained: Set<Int> = []
  private var deadline: UInt64?
  private var graceDeadline: UInt64?
  private var pacer = WatchPacer()
  /// Watches that fired and were not followed yet, and when they may be.
  private var backendMoved = false
  private var frontendMoved = false
  private var lookDeadline: UInt64?

  init(
    system: any XenSystem, store: any XenStore, location: DeviceLocation, options: FrontendOptions,
    logger: Logger, shared: DeviceShared
  ) {
    self.system = system
    self.store = store
    self.location = location
    self.options = options
    self.logger = logger
    self.shared = shared
  }

  // MARK: The thread

  func run() {
    do throws(XbdError) {
      var loop = try watch()
      perform(
        machine.handle(.started(own: try state(location.frontendState), backend: try backendState())))
      while machine.phase != .finished {
        try turn(&loop)
      }
    } catch {
      // Without xenstore there is no handshake left to go through, but whoever waits for requests is told.
      perform(machine.handle(.actionFailed(error)))
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
      return loop
    } catch {
      throw XbdError(.system, "making the control thread's event loop: \(error)")
    }
  }

  private func turn(_ loop: inout EventLoop) throws(XbdError) {
    _ = loop.wait(milliseconds: timeout())
    for message in shared.takeMessages() { receive(message) }
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
  }

  private func timeout() -> Int32? {
    guard let first = [deadline, graceDeadline, lookDeadline].compactMap({ $0 }).min() else { return nil }
    let now = MonotonicClock.nanoseconds()
    return first <= now ? 0 : Int32(clamping: (first - now) / 1_000_000 + 1)
  }

  private func receive(_ message: DriverMessage) {
    switch message {
    case .close:
      perform(machine.handle(.closeRequested))
    case .report(.drained(let queue)):
      drained.insert(queue)
      if drained.count == connections.count { perform(machine.handle(.drained)) }
    case .report(.violation(let queue, let violation)):
      let sentence =
        "\(location.frontend) is broken: \(violation) (queue \(queue)); everything in flight has failed"
      for connection in connections { connection.control.tell { $0.failEverything = .ioError } }
      perform(machine.handle(.violation(sentence)))
    case .report(.message(let text)):
      logger.warning("\(location.frontend): \(text)")
    }
  }

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
    let frontendFired = frontendMoved
    let backendFired = backendMoved
    frontendMoved = false
    backendMoved = false
    if frontendFired, try !exists(location.frontend + "/" + Key.backend) {
      return perform(machine.handle(.directoryRemoved))
    }
    if backendFired { perform(machine.handle(.backendState(try backendState()))) }
  }

  /// Far more than the interval between two looks can bring.
  private static let watchEventsPerTurn = 16_384

  // MARK: Actions

  private func perform(_ actions: [FrontendStateMachine.Action]) {
    for action in actions {
      do throws(XbdError) {
        try perform(action)
      } catch {
        // What is left of the list assumed that this one worked; only the list of a failure goes on to its end.
        let instead = machine.handle(.actionFailed(error))
        if !instead.isEmpty { return perform(instead) }
      }
    }
  }

  private func perform(_ action: FrontendStateMachine.Action) throws(XbdError) {
    logger.debug("\(location.frontend): \(action)")
    switch action {
    case .setState(let state): try setState(state)
    case .publish(let assumeDefaults): try publish(assumeDefaults: assumeDefaults)
    case .connect: try connect()
    case .rereadSize: try rereadSize()
    case .drain:
      drained = []
      for connection in connections { connection.control.drain(refusing: .shutdown) }
      shared.set(.closing)
    case .failInFlight:
      for connection in connections {
        connection.control.tell {
          $0.refusal = .shutdown
          $0.failEverything = .shutdown
        }
      }
    case .release: release()
    case .startTimer:
      let patience = shared.isConnected ? options.closeTimeout : options.handshakeTimeout
      deadline = MonotonicClock.nanoseconds() &+ patience.nanoseconds
    case .startGraceTimer:
      graceDeadline = MonotonicClock.nanoseconds() &+ options.initialisingGrace.nanoseconds
    case .fail(let error):
      shared.fail(describe(error))
    }
  }

  /// Adds to an error what a person looks for next: both states and what the backend itself said.
  private func describe(_ error: XbdError) -> XbdError {
    let own = (try? state(location.frontendState)) ?? .unknown
    let said = (try? store.read("\(location.backendErrorPath)")).flatMap { $0 }
    var message = "\(location.frontend): \(error.message) (frontend \(own), backend \(machine.backend)"
    message += " at \(location.backend)"
    if let said { message += ", which says: \(said)" }
    return XbdError(error.code, message + ")")
  }

  private func setState(_ state: XenbusState) throws(XbdError) {
    do throws(XenError) {
      // A directory that the toolstack has taken away must not be created again.
      guard try store.readBytes(location.frontend + "/" + Key.backend) != nil else { return }
      try store.write(location.frontendState, String(state.rawValue))
    } catch {
      throw XbdError(error, during: "writing \(location.frontendState)")
    }
    if state == .connected {
      deadline = nil
      graceDeadline = nil
    }
  }

  private func publish(assumeDefaults: Bool) throws(XbdError) {
    graceDeadline = nil
    let nodes = assumeDefaults ? [:] : try backendNodes()
    let offered = try wellFormed { () throws(MalformedNode) in try TransportFeatures(nodes) }
    let chosen = TransportParameters(options, offered)
    transport = chosen
    connections = []
    do throws(XenError) {
      for index in 0..<chosen.queueCount {
        connections.append(
          try QueueConnection(index: index, system, location.backendDomain, chosen, options, shared: shared))
      }
      let writer = TransportWriter(location: location, options: options, parameters: chosen)
      try writer.write(connections, to: store)
    } catch {
      throw XbdError(error, during: "publishing the ring of \(location.frontend)")
    }
  }

  private func connect() throws(XbdError) {
    guard let transport else { return }
    let nodes = try backendNodes()
    let features = try wellFormed { () throws(MalformedNode) in try DeviceFeatures(nodes) }
    self.features = features
    var trusted = true
    if let value = options.trusted {
      trusted = value
    } else if let value = try? store.read(location.frontend + "/" + Key.trusted) {
      trusted = value != "0"
    }
    let gate = WriteGate()
    var queues: [BlockQueue] = []
    do throws(XenError) {
      let sharing = try system.openGrantSharing()
      for connection in connections {
        queues.append(
          try connection.makeQueue(
            QueueParameters(location, options, transport, features, trusted: trusted), sharing, gate))
      }
    } catch {
      throw XbdError(error, during: "sharing the first pages with domain \(location.backendDomain)")
    }
    shared.connect(queues: queues, features: features, transport: transport)
  }

  /// The backend says Connected again: the size may have changed (blkif.h: "sectors").
  private func rereadSize() throws(XbdError) {
    guard let old = features else { return }
    let nodes = try backendNodes()
    let sectors: UInt64
    do throws(MalformedNode) {
      sectors = try DeviceFeatures.sectorCount(nodes, sectorSize: old.sectorSize)
    } catch {
      // The device works as it is: no reason to take it from its users.
      logger.warning("the backend's \(error) in \(location.backend): the size stays as it was")
      return
    }
    guard sectors != old.sectorCount else { return }
    features?.sectorCount = sectors
    logger.notice("\(location.frontend): the size is now \(sectors) sectors of 512 bytes")
    for connection in connections { connection.control.tell { $0.sectorCount = sectors } }
    shared.resize(sectors)
  }

  /// Takes back everything that the backend could still use.
  ///
  /// The queues live on, refusing everything.
  private func release() {
    for connection in connections { connection.release() }
    try? store.unwatch(location.backendState, token: "backend")
    try? store.unwatch(location.frontend, token: "frontend")
  }

  // MARK: xenstore

  private func wellFormed<Value>(
    _ body: () throws(MalformedNode) -> Value
  ) throws(XbdError) -> Value {
    do throws(MalformedNode) {
      return try body()
    } catch {
      throw XbdError(.malformed, "the backend's \(error) in \(location.backend)")
    }
  }

  private func exists(_ path: String) throws(XbdError) -> Bool {
    do throws(XenError) {
      return try store.readBytes(path) != nil
    } catch {
      throw XbdError(error, during: "reading \(path)")
    }
  }

  private func state(_ path: String) throws(XbdError) -> XenbusState {
    do throws(XenError) {
      guard let bytes = try store.readBytes(path), let number = try? Decimal.parse(bytes, in: 0...8) else {
        return .unknown
      }
      return XenbusState(rawValue: UInt8(number)) ?? .unknown
    } catch {
      // A node that is gone is one that may not be read, where its parents may not be read either.
      if error.code == .denied { return .unknown }
      throw XbdError(error, during: "reading \(path)")
    }
  }

  private func backendState() throws(XbdError) -> XenbusState { try state(location.backendState) }

  private func backendNodes() throws(XbdError) -> Nodes {
    do throws(XenError) {
      return try location.nodes(of: location.backend, in: store)
    } catch {
      throw XbdError(error, during: "reading \(location.backend)")
    }
  }
}

extension Duration {
  /// Whole nanoseconds; at most what 64 bits hold.
  var nanoseconds: UInt64 {
    let (seconds, attoseconds) = components
    return UInt64(clamping: seconds) &* 1_000_000_000 &+ UInt64(clamping: attoseconds / 1_000_000_000)
  }
}
