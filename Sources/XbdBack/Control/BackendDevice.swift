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
  private let backend: Backend
  private let nodes: DeviceNodes
  private let logger: Logger
  // Guarded by the control lock.
  private var machine: XenbusMachine
  private var queues: [ColocatedQueue] = []
  private var past = BackendStatistics()
  private(set) var removed = false
  private var reportedViolation = false
  /// Until when a frontend may go on with the ring of a backend that died, in nanoseconds.
  private(set) var patience: UInt64?
  private let endsWithFrontend: Bool
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
      takingOver: FrontendState(node: try backend.store.readBytes("\(directory)/\(Key.state)")))
    self.endsWithFrontend = endsWithFrontend
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

  /// A queue of the present connection, for the thread that owns the frontend's end of it.
  ///
  /// - Parameter index: 0 up to `queueCount`.
  /// - Returns: nil while no frontend is connected, when there is no such queue, or when the queues have threads of
  ///   their own.
  public func colocatedQueue(_ index: Int) -> ColocatedQueue? {
    guard configuration.execution == .colocated else { return nil }
    return backend.control.withLock { queues.indices.contains(index) ? queues[index] : nil }
  }

  /// Looks whether the storage's size was changed from outside, and tells the frontend.
  public func refreshSize() throws(StorageError) {
    try backend.control.withLock { () throws(StorageError) in
      let before = storage.byteCount
      if try storage.refreshByteCount() != before { publishSize() }
    }
  }

  /// Makes the disk larger or smaller and tells the frontend.
  ///
  /// - Parameter byteCount: a multiple of the physical sector.
  public func resize(to byteCount: UInt64) throws(StorageError) {
    try backend.control.withLock { () throws(StorageError) in
      let unit = configuration.physicalSectorSize ?? configuration.sectorSize
      try StorageOptions.check(byteCount, multipleOf: unit, what: "\(storage)")
      // Nobody may reach behind the end while it moves down.
      if byteCount < storage.byteCount { setSectorCount(byteCount) }
      do throws(StorageError) {
        try storage.resize(to: byteCount)
      } catch {
        setSectorCount(storage.byteCount)
        throw error
      }
      publishSize()
    }
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
        machine.failed()
        announce()
      }
      let deadline = MonotonicClock.nanoseconds() + milliseconds * 1_000_000
      while !queues.isEmpty, !removed, milliseconds > 0 {
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
      perform(machine.toolstack(node: node, frontend: try frontendState(), online: try online()))
    } catch {
      logger.error("cannot read the device's states: \(error)")
    }
  }

  /// Reports a ring that the frontend broke.
  func checkRings() {
    guard !removed, !reportedViolation else { return }
    guard let violation = queues.lazy.compactMap({ $0.queue.violation }).first else { return }
    reportedViolation = true
    machine.failed()
    complain("the ring is halted: \(violation)")
  }

  private func frontendState() throws(XenError) -> FrontendState {
    FrontendState(node: try backend.store.readBytes("\(frontendDirectory)/\(Key.state)"))
  }

  private func online() throws(XenError) -> Bool {
    try backend.store.read("\(directory)/\(Key.online)") != "0"
  }

  private func perform(_ actions: [XenbusMachine.Action]) {
    for action in actions {
      switch action {
      case .disconnect: disconnect()
      case .offer: publish(nodes.beforeInitWait, .initWait)
      case .connect: connect()
      case .announce: announce()
      case .complain(let sentence): complain(sentence)
      case .remove: remove()
      }
    }
  }

  private func connect() {
    do throws(XenError) {
      let offered = try FrontendParameters(
        from: backend.store, directory: frontendDirectory, configuration: configuration)
      let parameters = QueueParameters(
        frontend: frontend, abi: offered.abi,
        persistent: offered.persistent && configuration.persistentGrants && configuration.dataPath == .map,
        configuration: configuration, readOnly: nodes.readOnly, discard: nodes.discard,
        secureDiscard: nodes.secureDiscard)
      let sectors = DeviceNodes.sectorCount(storage.byteCount, configuration)
      for ring in offered.rings {
        let queue = try BackendQueue(
          system: backend.system, transport: ring, parameters: parameters, storage: storage,
          sectorCount: sectors,
          workers: backend.workers, violated: { [weak backend] in backend?.ringBroke() })
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
      machine.connected()
      // An earlier complaint is over before the frontend hears that it is connected.
      try? backend.store.remove(errorNode)
      try write(nodes.withConnected)
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
    backend.control.signalAll()
  }

  private func remove() {
    guard !removed else { return }
    removed = true
    claim = nil
    backend.forget(self)
    backend.control.signalAll()
    logger.info("removed")
  }

  private func setSectorCount(_ byteCount: UInt64) {
    let sectors = DeviceNodes.sectorCount(byteCount, configuration)
    for queue in queues { queue.queue.setSectorCount(sectors) }
  }

  /// The size first, then the state again: its watch is what tells the frontend (blkif.h; Linux xen_vbd_resize).
  private func publishSize() {
    setSectorCount(storage.byteCount)
    guard machine.own == .connected else { return }
    publish(
      [(Key.sectors, String(DeviceNodes.sectorCount(storage.byteCount, configuration)))], .connected)
  }

  private func publish(_ list: [(String, String)], _ state: XenbusState) {
    do throws(XenError) {
      try write(list)
    } catch {
      logger.error("cannot publish state \(state): \(error)")
    }
  }

  /// Writes nodes and the machine's state, all at once.
  private func write(_ list: [(String, String)]) throws(XenError) {
    let state = String(machine.own.rawValue)
    let directory = directory
    try backend.store.transaction { (transaction) throws(XenError) in
      for (key, value) in list { try transaction.write("\(directory)/\(key)", value) }
      try transaction.write("\(directory)/\(Key.state)", state)
    }
  }

  private func announce() { publish([], machine.own) }

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
