// SPDX-License-Identifier: Apache-2.0
//
// The control thread's deeds: each action of the state machine. What they read is in DeviceDriver+Nodes.swift.

internal import Blkif
internal import Logging
internal import Platform
internal import SystemPackage
internal import Xen

extension DeviceDriver {
  // MARK: Actions

  func perform(_ actions: [FrontendStateMachine.Action]) {
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
    case .serve: try serve()
    case .rereadSize: try rereadSize()
    case .drain:
      drained = []
      for control in controls { control.drain(refusing: .shutdown) }
      shared.set(.closing)
    case .hold:
      drained = []
      for control in controls { control.drain(refusing: nil) }
      shared.set(.reconnecting)
    case .suspend: suspend()
    case .abandon: abandon()
    case .failInFlight:
      for control in controls {
        control.tell {
          $0.refusal = .shutdown
          $0.failEverything = .shutdown
        }
      }
    case .release: release()
    case .startTimer: startTimer()
    case .startGraceTimer:
      // A backend that is being started again takes its time to get to InitWait.
      let grace = options.initialisingGrace.nanoseconds &* (machine.isRecovering ? 5 : 1)
      graceDeadline = MonotonicClock.nanoseconds() &+ grace
    case .startPauseTimer:
      deadline = MonotonicClock.nanoseconds() &+ options.reconnectPause.nanoseconds
    case .startReconnectTimer:
      if reconnectDeadline == nil {
        reconnectDeadline = MonotonicClock.nanoseconds() &+ options.reconnectTimeout.nanoseconds
      }
    case .note(let error):
      logger.warning("\(describe(error).message); requests wait for the next one")
    case .fail(let error):
      shared.fail(describe(error))
    }
  }

  /// The device is being closed, for good.
  var isOnTheWayOut: Bool {
    switch machine.phase {
    case .draining: !machine.isRecovering
    case .closing, .closed: true
    default: false
    }
  }

  private func startTimer() {
    let now = MonotonicClock.nanoseconds()
    switch machine.phase {
    case .resettingClosing where machine.isRecovering, .resettingClosed where machine.isRecovering:
      deadline = now &+ (options.reconnectPause * 3).nanoseconds
    case _ where isOnTheWayOut:
      // One time for all steps of the way out: a backend that is dead takes it once, not once for each.
      let end = closeDeadline ?? now &+ options.closeTimeout.nanoseconds
      closeDeadline = end
      deadline = end
    default:
      let patience =
        shared.isConnected && !machine.isRecovering ? options.closeTimeout : options.handshakeTimeout
      deadline = now &+ patience.nanoseconds
    }
  }

  /// Adds to an error what a person looks for next: both states and what the backend itself said.
  private func describe(_ error: XbdError) -> XbdError {
    let own = (try? state(location.frontendState)) ?? .unknown
    let said = (try? store.read("\(location.backendErrorPath)")).flatMap { $0 }
    var message = "\(location.frontend): \(error.message) (frontend \(own), backend \(machine.backend)"
    message += " at \(location.backend)"
    if let said { message += ", which says: \(ForeignText.printable(said))" }
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
    written = state
  }

  private func publish(assumeDefaults: Bool) throws(XbdError) {
    graceDeadline = nil
    let nodes = assumeDefaults ? [:] : try backendNodes()
    let offered = try wellFormed { () throws(MalformedNode) in try TransportFeatures(nodes) }
    // Until the queues are in use, nothing of an earlier attempt counts.
    let isFirst = !shared.isConnected
    var wanted = options
    // There can be no more of them than there were.
    if !isFirst { wanted.queueCount = controls.count }
    var chosen = TransportParameters(wanted, offered)
    if isFirst {
      controls = (0..<chosen.queueCount).map { index in
        QueueControl(queue: index) { [weak shared] report in shared?.post(.report(report)) }
      }
    }
    connections = []
    do throws(XenError) {
      for control in controls.prefix(chosen.queueCount) {
        do throws(XenError) {
          connections.append(
            try QueueConnection(control: control, system, location.backendDomain, chosen, options))
        } catch {
          // Fewer queues than there could be, rather than no device.
          guard isFirst, error.code == .limitReached, !connections.isEmpty else { throw error }
          logger.warning(
            "\(location.frontend): \(connections.count) of \(chosen.queueCount) queues, as there are no pages for more: \(error)"
          )
          chosen.queueCount = connections.count
          controls.removeSubrange(connections.count...)
          break
        }
      }
      transport = chosen
      let writer = TransportWriter(location: location, options: options, parameters: chosen)
      try writer.write(connections, to: store)
      written = .initialised
    } catch {
      throw XbdError(error, during: "publishing the ring of \(location.frontend)")
    }
  }

  private func connect() throws(XbdError) {
    guard var transport else { return }
    let nodes = try backendNodes()
    var (features, offered) = try wellFormed { () throws(MalformedNode) in
      (try DeviceFeatures(nodes, unit: options.sectorsUnit), try TransportFeatures(nodes))
    }
    // Nothing that was published depends on it: a backend may have come to it since, or have thought better of it.
    transport.maxSegments =
      TransportParameters(options, offered, queueCount: transport.queueCount).maxSegments
    self.transport = transport
    let sectorSize = features.sectorSize
    if let old = self.features, features.sectorSize != old.sectorSize {
      guard features.sectorSize < old.sectorSize, options.sectorsUnit == .bytes512 else {
        throw XbdError(
          .malformed,
          "\(location.backend) has sectors of \(features.sectorSize) bytes now, where requests in flight were made for \(old.sectorSize)"
        )
      }
      // They reach to the ends of larger sectors, which the smaller ones fill: the device keeps the larger.
      features.sectorSize = old.sectorSize
      features.sectorCount = features.wholeSectors(features.sectorCount)
    }
    var trusted = true
    if let value = options.trusted {
      trusted = value
    } else if let value = try? store.read(location.frontend + "/" + Key.trusted) {
      trusted = value != "0"
    }
    links = []
    do throws(XenError) {
      for connection in connections {
        links.append(
          try connection.makeLink(QueueParameters(location, options, transport, features, trusted: trusted)))
      }
    } catch {
      throw XbdError(error, during: "connecting the queues of \(location.frontend)")
    }
    self.features = features
    backendSectorSize = sectorSize
  }

  /// Both ends are connected: hands over the queues, or what they go on with.
  private func serve() throws(XbdError) {
    deadline = nil
    closeDeadline = nil
    graceDeadline = nil
    reconnectDeadline = nil
    guard let transport, let features else { return }
    if shared.isConnected {
      for (control, link) in zip(controls, links) { control.tell { $0.link = link } }
      // A backend with fewer queues than the last: the others work through the first.
      for control in controls.dropFirst(links.count) {
        control.tell { $0.relay = Relay(host: controls[0], parameters: links[0].parameters) }
      }
      logger.warning("\(location.frontend): connected again, to \(location.backend)")
      shared.reconnected(features)
    } else {
      var queues: [BlockQueue] = []
      for (control, link) in zip(controls, links) {
        queues.append(try makeQueue(link, control))
      }
      shared.connect(queues: queues, features: features, transport: transport)
    }
    links = []
  }

  private func makeQueue(_ link: QueueLink, _ control: QueueControl) throws(XbdError) -> BlockQueue {
    let wakeup: EventCounter
    do throws(Errno) { wakeup = try makeWakeup() } catch {
      throw XbdError(
        .system,
        "no eventfd for the wake-up of queue \(control.queue): \(error); `ulimit -n` says how many descriptors there may be"
      )
    }
    guard let queue = BlockQueue(link, control: control, gate: gate, wakeup: wakeup) else {
      throw XbdError(.system, "queue \(control.queue) was connected before")
    }
    return queue
  }

  /// The queues let go of their rings and keep their requests.
  private func suspend() {
    try? noticeRestore()
    suspended = []
    links = []
    // From here on they belong to the queues, which close their event channels.
    connections = []
    limited = []
    growDeadline = nil
    for control in controls { control.suspend() }
    shared.set(.reconnecting)
  }

  /// Lets go of what was published and never came into use.
  private func abandon() {
    try? noticeRestore()
    graceDeadline = nil
    links = []
    for connection in connections { connection.release() }
    connections = []
  }

  /// The backend says Connected again: the size may have changed (blkif.h: "sectors").
  private func rereadSize() throws(XbdError) {
    guard let old = features else { return }
    let nodes = try backendNodes()
    let sectors: UInt64
    do throws(MalformedNode) {
      // Its own sectors may be smaller than those that the device has kept.
      sectors = old.wholeSectors(
        try DeviceFeatures.sectorCount(
          nodes, sectorSize: backendSectorSize ?? old.sectorSize, unit: options.sectorsUnit))
    } catch {
      // The device works as it is: no reason to take it from its users.
      logger.warning("the backend's \(error) in \(location.backend): the size stays as it was")
      return
    }
    guard sectors != old.sectorCount else { return }
    features?.sectorCount = sectors
    logger.notice("\(location.frontend): the size is now \(sectors) sectors of 512 bytes")
    for control in controls { control.tell { $0.sectorCount = sectors } }
    shared.resize(sectors)
  }

  /// Takes back everything that the backend could still use.
  ///
  /// The queues live on, refusing everything.
  private func release() {
    try? noticeRestore()
    for connection in connections { connection.release() }
    try? store.unwatch(location.backendState, token: "backend")
    try? store.unwatch(location.frontend, token: "frontend")
  }
}
