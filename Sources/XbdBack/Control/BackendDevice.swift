// SPDX-License-Identifier: Apache-2.0
//
// One virtual block device as its backend sees it: performs what the xenbus machine decides, and owns the rings
// while a frontend is attached. Everything here runs under the backend's control lock.

internal import Blkif
internal import Logging
internal import Platform
internal import SystemPackage
public import Xen

/// A device that a backend serves.
///
/// All calls may come from any thread.
public final class BackendDevice: @unchecked Sendable {
  /// The backend's directory in xenstore.
  public let directory: String
  /// The frontend's directory.
  public let frontendDirectory: String
  /// Whose device it is.
  public let frontend: DomainID
  /// What its bytes are kept in.
  public let storage: any Storage
  /// What it offers.
  public let configuration: BackendConfiguration

  let number: Int
  /// A cycle until the device is over.
  let backend: Backend
  private let nodes: DeviceNodes
  private let logger: Logger
  // Guarded by the control lock.
  private(set) var machine: XenbusMachine
  private(set) var queues: [ColocatedQueue] = []
  private var past = BackendStatistics()
  private(set) var removed = false
  private var reportedViolation = false
  private var reportedLostRing = false
  private var withdrawn = Withdrawal()
  /// Until when a frontend may go on with the ring of a backend that died, in nanoseconds.
  private(set) var patience: UInt64?
  private let endsWithFrontend: Bool
  private let faults: FaultInjector?
  private var claim: NameClaim?

  init(
    backend: Backend, number: Int, directory: String, storage: any Storage,
    configuration: BackendConfiguration, endsWithFrontend: Bool, logger: Logger
  ) throws(XenError) {
    if let complaint = configuration.complaint(about: storage) {
      throw XenError(.invalid, "the device \(directory) cannot be served so: \(complaint)")
    }
    let reader = NodeReader(store: backend.store, directory: directory)
    guard let path = try reader.text(Key.frontend), !path.isEmpty else {
      throw XenError(
        .notFound,
        "there is no device \(directory): its node \(Key.frontend) is missing; the toolstack creates it")
    }
    frontendDirectory = path
    let last = UInt64(DomainID.firstReserved.rawValue) - 1
    frontend = DomainID(UInt16(try reader.required(Key.frontendID, in: 0...last)))
    let mode = try reader.text(Key.mode)
    let discardEnable = try reader.text(Key.discardEnable)
    let readOnly = configuration.readOnly || storage.isReadOnly || mode == "r"
    let discardIsPossible = storage.discardGranularity != nil && discardEnable != "0"
    nodes = DeviceNodes(
      configuration: configuration, storage: storage, readOnly: readOnly,
      discard: discardIsPossible && !readOnly ? configuration.discard : .off)
    claim = try Self.claim(directory, of: backend.system)
    machine = XenbusMachine(
      takingOver: FrontendState(node: try backend.store.readBytes("\(directory)/\(Key.state)")), configuration
    )
    self.endsWithFrontend = endsWithFrontend
    faults = FaultInjector(configuration.faults)
    self.backend = backend
    self.number = number
    self.directory = directory
    self.storage = storage
    self.configuration = configuration
    var logger = logger
    logger[metadataKey: "device"] = "\(directory)"
    self.logger = logger
  }

  /// Makes sure that no other process of this machine serves the device.
  private static func claim(_ directory: String, of system: any XenSystem) throws(XenError) -> NameClaim? {
    guard let identity = system.identity else { return nil }
    do throws(Errno) {
      return try NameClaim("\(identity) backend \(directory)")
    } catch {
      guard error == .addressInUse else {
        throw XenError(errno: error, "cannot claim \(directory) among the processes of this machine")
      }
      throw XenError(
        .denied, "\(directory) is served by another process of this machine already; stop that one first")
    }
  }

  // MARK: For everyone

  /// Where this end stands.
  public var state: XenbusState { backend.control.withLock { machine.own } }

  /// Whether the device is over: the toolstack has taken it away, or it was closed for good.
  public var isRemoved: Bool { backend.control.withLock { removed } }

  /// How many queues the connected frontend uses; 0 without one.
  public var queueCount: Int { backend.control.withLock { queues.count } }

  /// What was done, over all queues and connections.
  public var statistics: BackendStatistics {
    backend.control.withLock { queues.reduce(past) { $0 + $1.queue.statistics } }
  }

  /// Waits until a frontend's queues are attached; some backends say that they are connected before they are.
  ///
  /// - Parameters:
  ///   - count: how many queues.
  ///   - milliseconds: the longest wait.
  /// - Returns: whether they are.
  public func waitForQueues(_ count: Int, milliseconds: UInt64) -> Bool {
    let deadline = MonotonicClock.nanoseconds() + milliseconds * 1_000_000
    return backend.control.withLock {
      while queues.count < count {
        if removed || !backend.control.wait(until: deadline) { return false }
      }
      return true
    }
  }

  /// A queue of the present connection, for the thread that owns the frontend's end of it.
  ///
  /// - Parameter index: 0 up to `queueCount`.
  /// - Returns: nil while no frontend is connected, when there is no such queue, or when the queues have threads of
  ///   their own.
  public func colocatedQueue(_ index: Int) -> ColocatedQueue? {
    guard configuration.execution == .colocated else { return nil }
    return backend.control.withLock { queues.indices.contains(index) ? queues[index] : nil }
  }

  /// Ends the device: asks the frontend to close, waits for it, and lets go.
  ///
  /// - Parameter milliseconds: how long the frontend may take; requests are served meanwhile. 0 does not wait.
  /// - Returns: whether it closed by itself.
  @discardableResult
  public func close(waiting milliseconds: UInt64 = 0) -> Bool {
    let (closed, handler) = backend.control.withLock { () -> (Bool, [BackendDevice]) in
      guard !removed else { return (true, []) }
      if milliseconds > 0, !queues.isEmpty, machine.own == .connected {
        machine.beginEnd()
        announce()
      }
      let deadline = MonotonicClock.nanoseconds() + milliseconds * 1_000_000
      while !queues.isEmpty, !removed, !backend.isDeaf, milliseconds > 0 {
        if !backend.control.wait(until: deadline) { break }
      }
      let closed = queues.isEmpty
      if !removed { perform(machine.end()) }
      return (closed, backend.takeRemoved())
    }
    backend.report(handler)
    return closed
  }

  // MARK: For the control thread, under its lock

  /// The frontend's `state` may have changed.
  func frontendChanged() {
    guard !removed else { return }
    do throws(XenError) {
      let frontend = try frontendState()
      let isOver = endsWithFrontend && frontend == .missing
      perform(machine.frontend(frontend, online: try online() && !isOver))
    } catch {
      logger.error("cannot read the device's states: \(error)")
    }
    if !machine.isAbandoned {
      patience = nil
    } else if patience == nil, machine.own == .initWait {
      patience = MonotonicClock.nanoseconds() + configuration.abandonedMilliseconds * 1_000_000
      logger.warning("an earlier backend died while it was connected; its frontend has to connect again")
    }
  }

  /// Looks whether a frontend has had its time.
  func checkPatience(now: UInt64) {
    guard let moment = patience, now >= moment else { return }
    patience = nil
    perform(machine.patienceOver())
  }

  /// Our own `state`, or `online`, may have been changed by the toolstack.
  func directoryChanged() {
    guard !removed else { return }
    do throws(XenError) {
      let node = FrontendState(node: try backend.store.readBytes("\(directory)/\(Key.state)"))
      perform(
        machine.toolstack(
          node: node, frontend: try frontendState(), online: try online(), isBare: try isBare()))
    } catch {
      logger.error("cannot read the device's states: \(error)")
    }
  }

  /// Reports a ring that the frontend broke or took back, and takes back features that turned out not to work.
  func checkRings() {
    guard !removed else { return }
    if !reportedLostRing, queues.contains(where: { $0.queue.hasLostRing }) {
      reportedLostRing = true
      logger.warning(
        "the ring is not granted any more: nothing is answered in it until the frontend connects again")
    }
    let found = queues.reduce(into: Withdrawal()) { $0.formUnion($1.queue.withdrawn) }
    if found != withdrawn {
      publish(found.subtracting(withdrawn).keys.map { ($0, "0") }, nil)
      if removed { return }
      withdrawn = found
    }
    guard !reportedViolation else { return }
    guard let violation = queues.lazy.compactMap({ $0.queue.violation }).first else { return }
    reportedViolation = true
    if configuration.haltsSilently {
      logger.error("the ring is halted: \(violation)")
      return
    }
    machine.failed()
    complain("the ring is halted: \(violation)")
  }

  private func frontendState() throws(XenError) -> FrontendState {
    do throws(XenError) {
      return FrontendState(node: try backend.store.readBytes("\(frontendDirectory)/\(Key.state)"))
    } catch {
      // In a driver domain a node that is gone is one that may not be read, as its parents may not; and a guest that
      // shuts its node away is as good as gone.
      if error.code == .denied { return .missing }
      throw error
    }
  }

  /// Whether what is offered at Initialising is not there.
  private func isBare() throws(XenError) -> Bool {
    guard let (key, _) = nodes.nodes(configuration.publication.initialising).first else { return false }
    return try backend.store.readBytes("\(directory)/\(key)") == nil
  }

  private func online() throws(XenError) -> Bool {
    try backend.store.read("\(directory)/\(Key.online)") != "0"
  }

  private func perform(_ actions: [XenbusMachine.Action]) {
    // One of them may have found that the device has been taken away.
    for action in actions where !removed {
      switch action {
      case .disconnect: disconnect()
      case .offer(let state): offer(state)
      case .connect: connect(publishing: true)
      case .attach: connect(publishing: false)
      case .announce: announce()
      case .complain(let sentence): complain(sentence)
      case .remove: remove()
      }
    }
  }

  private func offer(_ state: XenbusState) {
    let publication = configuration.publication
    let features =
      switch state {
      case .initialising: publication.initialising
      case .connected: publication.connected
      // Whoever saw nothing at Initialising finds it here.
      default: publication.initialising + publication.initWait
      }
    publish(nodes.nodes(features), state)
  }

  private func connect(publishing: Bool) {
    do throws(XenError) {
      let offered = try FrontendParameters(
        from: backend.store, directory: frontendDirectory, configuration: configuration)
      let parameters = QueueParameters(
        frontend: frontend, abi: offered.abi,
        persistent: offered.persistent && configuration.persistentGrants && configuration.dataPath == .map,
        configuration: configuration, readOnly: nodes.readOnly, discard: nodes.discard,
        secureDiscard: nodes.secureDiscard, faults: faults)
      let sectors = DeviceNodes.sectorCount(storage.byteCount, configuration)
      for ring in offered.rings {
        let queue = try BackendQueue(
          system: backend.system, transport: ring, parameters: parameters, storage: storage,
          sectorCount: sectors,
          workers: backend.workers, changed: { [weak backend] in backend?.queueChanged() })
        queues.append(ColocatedQueue(queue))
      }
      if configuration.execution == .ownThread {
        for (index, queue) in queues.enumerated() {
          do {
            try queue.queue.startThread(name: "xbd-back-\(index)")
          } catch {
            throw XenError(errno: error, "no thread for queue \(index)")
          }
        }
      }
      if configuration.notifiesWhenAttached {
        for queue in queues { queue.queue.notifyFrontend() }
      }
      machine.connected()
      // An earlier complaint is over before the frontend hears that it is connected.
      try? backend.store.remove(errorNode)
      if publishing {
        guard try write(nodes.nodes(configuration.publication.connected), .connected) else { return vanish() }
      }
      logger.info(
        "connected: \(offered.rings.count) queue(s) of \(offered.rings[0].references.count) page(s), \(offered.abi.rawValue)\(parameters.persistent ? ", persistent grants" : "")"
      )
    } catch {
      disconnect()
      machine.failed()
      complain("cannot connect: \(error)")
    }
    backend.control.signalAll()
  }

  private func disconnect() {
    for queue in queues {
      queue.queue.detach()
      past = past + queue.queue.statistics
    }
    queues = []
    reportedViolation = false
    reportedLostRing = false
    withdrawn = []
    backend.control.signalAll()
  }

  private func remove() {
    guard !removed else { return }
    removed = true
    claim = nil
    if configuration.removesNodes, (try? online()) == false {
      try? backend.store.remove(frontendDirectory)
      try? backend.store.remove(directory)
    }
    backend.forget(self)
    backend.control.signalAll()
    logger.info("removed")
  }

  /// Writes nodes, and a state if it is to be another one or its watch is to fire.
  func publish(_ list: [(String, String)], _ state: XenbusState?) {
    do throws(XenError) {
      if try !write(list, state) { vanish() }
    } catch {
      logger.error("cannot publish \(state.map { "state \($0)" } ?? "nodes"): \(error)")
      if error.code == .disconnected { backend.becomeDeaf() }
    }
  }

  /// Writes all at once.
  ///
  /// - Returns: false when the toolstack has taken the directory away; writing would make it again (Linux
  ///   xenbus_switch_state).
  private func write(_ list: [(String, String)], _ state: XenbusState?) throws(XenError) -> Bool {
    let directory = directory
    var nodes = list
    if let state { nodes.append((Key.state, String(state.rawValue))) }
    return try backend.store.transaction { (transaction) throws(XenError) in
      guard try transaction.read("\(directory)/\(Key.frontend)") != nil else { return false }
      for (key, value) in nodes { try transaction.write("\(directory)/\(key)", value) }
      return true
    }
  }

  /// The device was found to have been taken away, before a watch has said so.
  private func vanish() {
    perform(machine.toolstack(node: .missing, frontend: .missing, online: false))
    // Whoever is to be told is told by the control thread.
    backend.queueChanged()
  }

  func announce() { publish([], machine.own) }

  /// Linux's place for what went wrong: `error/<device>/error` in the backend's own domain.
  private var errorNode: String {
    var path = directory[...]
    if path.hasPrefix("/local/domain/") {
      path = path.dropFirst("/local/domain/".count).drop { $0 != "/" }.dropFirst()
    }
    return "error/\(path)/error"
  }

  private func complain(_ sentence: String) {
    logger.error("\(sentence)")
    // 22 is EINVAL, as xenbus_dev_error writes it in front.
    try? backend.store.write(errorNode, "22 \(sentence)")
    announce()
  }
}
