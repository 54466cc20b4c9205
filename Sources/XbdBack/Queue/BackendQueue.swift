// SPDX-License-Identifier: Apache-2.0
//
// One ring that is attached to a frontend: the engine, its lock, its event channel, and how it is taken down.
//
// Threads: `run` belongs to one thread at a time, the queue's own or the one that has the frontend's queue. The
// control thread takes the lock to change the size, to read the statistics and to detach; `run` takes it once.

internal import Blkif
internal import CXen
internal import Platform
internal import Synchronization
internal import SystemPackage
internal import Xen

/// One attached ring.
@safe final class BackendQueue: @unchecked Sendable {
  private let monitor = Monitor()
  // SAFETY: one element, initialised until `detach`; `engine` is the only way there.
  private let engineMemory: UnsafeMutablePointer<QueueEngine>
  private var isAttached = true
  /// What of the engine's `withdrawn` the control thread was told.
  private var reported = Withdrawal()
  private var lastStatistics = BackendStatistics()

  private let grants: any GrantMapping
  private let channels: any EventChannels
  private let port: EventChannelPort
  // SAFETY: the mapped ring, until `detach`; only handed to the ring's end in the engine, which is gone by then.
  private let ringBase: UnsafeMutableRawPointer
  private let ringPageCount: Int
  private let notifies: Bool
  private let pollNanoseconds: UInt64
  private let slow: SlowLane
  private let changed: @Sendable () -> Void
  private let brokenBy = Mutex<RingViolation?>(nil)
  private let withdrawal = Mutex(Withdrawal())
  private let ringLost = Atomic(false)
  private let stop: StopSignal
  private let thread = Mutex<DedicatedThread?>(nil)

  /// A counter that is shared with the queue's thread.
  private final class StopSignal: Sendable {
    let counter: EventCounter
    let requested = Atomic<Bool>(false)
    init() throws(Errno) { counter = try EventCounter() }
  }

  /// Attaches to what a frontend has published: maps the ring and binds the event channel.
  ///
  /// - Parameters:
  ///   - transport: the references and the port.
  ///   - changed: called with no lock held when `violation`, `withdrawn` or `hasLostRing` has changed.
  /// - Throws: one sentence; nothing stays mapped or bound.
  init(
    system: any XenSystem, transport: RingTransport, parameters: QueueParameters, storage: any Storage,
    sectorCount: UInt64, workers: StorageWorkers, changed: @escaping @Sendable () -> Void
  ) throws(XenError) {
    let grants = try system.openGrantMapping()
    let channels = try system.openEventChannels()
    let frontend = parameters.frontend
    // SAFETY: unmapped below if anything fails, and else by `detach`.
    let base = unsafe try grants.map(transport.references, of: frontend, writable: true)
    do throws(XenError) {
      port = try channels.bindInterdomain(remote: frontend, port: transport.eventChannel)
    } catch {
      try? unsafe grants.unmap(base, count: transport.references.count)
      throw XenError(
        error.code, "cannot bind event channel \(transport.eventChannel) of domain \(frontend): \(error)",
        errno: error.errno)
    }
    // SAFETY: kept; given back below if anything fails, and else in the deinit.
    unsafe engineMemory = .allocate(capacity: 1)
    self.grants = grants
    self.channels = channels
    self.changed = changed
    unsafe ringBase = base
    ringPageCount = transport.references.count
    notifies = parameters.configuration.execution == .ownThread
    pollNanoseconds = parameters.configuration.pollNanoseconds
    do {
      // SAFETY: the ring lives in the engine, and the pages stay mapped until that is gone.
      let ring = unsafe try BackRing(pages: base, pageCount: transport.references.count, abi: parameters.abi)
      let configuration = parameters.configuration
      let pending = try PendingRequests(
        capacity: Int(ring.capacity),
        maxSegments: max(BlkIf.maxDirectSegments, configuration.maxIndirectSegments),
        staging: configuration.dataPath == .grantCopy)
      slow = try SlowLane(storage: storage, slots: pending, workers: workers)
      stop = try StopSignal()
      // SAFETY: the new memory.
      unsafe engineMemory.initialize(
        to: QueueEngine(
          ring: ring, ringReference: transport.references[0], parameters: parameters, storage: storage,
          grants: grants, sectorCount: sectorCount, pending: pending, slow: slow))
    } catch {
      try? channels.unbind(port)
      try? unsafe grants.unmap(base, count: transport.references.count)
      // SAFETY: not initialised.
      unsafe engineMemory.deallocate()
      throw (error as? RingViolation).map { XenError(.invalid, $0.description) }
        ?? XenError(.limitReached, "no memory or descriptor for a ring: \(error)")
    }
  }

  deinit {
    detach()
    // SAFETY: `detach` has taken the engine out.
    unsafe engineMemory.deallocate()
  }

  /// The engine; only while attached, and with the monitor held.
  private var engine: QueueEngine {
    // SAFETY of both: initialised for as long as `isAttached` says so, and whoever holds the monitor has it to himself.
    unsafeAddress {
      precondition(isAttached, "the queue was detached")
      return unsafe UnsafePointer(engineMemory)
    }
    unsafeMutableAddress {
      precondition(isAttached, "the queue was detached")
      return unsafe engineMemory
    }
  }

  /// Readable while a worker has finished something for this queue.
  var wakeDescriptor: Int32 { slow.wakeUp.fileDescriptor }

  /// Whether the frontend is still there.
  var attached: Bool { monitor.withLock { isAttached } }

  /// How the frontend broke the ring.
  var violation: RingViolation? { brokenBy.withLock { $0 } }

  /// Whether the ring turned out not to be granted any more: nothing is answered in it.
  var hasLostRing: Bool { ringLost.load(ordering: .relaxed) }

  /// What was answered EOPNOTSUPP although it was offered.
  var withdrawn: Withdrawal { withdrawal.withLock { $0 } }

  /// What was done so far; the last figures once detached.
  var statistics: BackendStatistics {
    monitor.withLock { isAttached ? current() : lastStatistics }
  }

  /// Changes the size, in 512-byte sectors.
  func setSectorCount(_ count: UInt64) {
    monitor.withLock { if isAttached { engine.sectorCount = count } }
  }

  /// Does everything that can be done now.
  ///
  /// - Returns: whether a request was taken or answered.
  func run() -> Bool {
    var broken: RingViolation?
    var withdrawn = Withdrawal()
    var losesRing = false
    let didSomething = monitor.withLock { () -> Bool in
      guard isAttached else { return false }
      let already = engine.violation != nil
      let didSomething = engine.run()
      if engine.mustNotify, !notifies || notify() { engine.mustNotify = false }
      if !already { broken = engine.violation }
      losesRing = engine.hasLostRing && !hasLostRing
      if engine.withdrawn != reported {
        withdrawn = engine.withdrawn
        reported = withdrawn
      }
      return didSomething
    }
    if let broken { brokenBy.withLock { $0 = broken } }
    if !withdrawn.isEmpty { withdrawal.withLock { $0 = withdrawn } }
    if losesRing { ringLost.store(true, ordering: .relaxed) }
    if broken != nil || !withdrawn.isEmpty || losesRing { changed() }
    return didSomething
  }

  /// Starts the queue's own thread.
  func startThread(name: String) throws(Errno) {
    let loop = try EventLoop(capacity: 4)
    try loop.add(channels.fileDescriptor, .readable, token: Token.channel)
    try loop.add(wakeDescriptor, .readable, token: Token.worker)
    try loop.add(stop.counter.fileDescriptor, .readable, token: Token.stop)
    let box = LoopBox(loop)
    let started = try DedicatedThread(name: name) { [self] in serve(box) }
    thread.withLock { $0 = started }
  }

  /// Tells the frontend that there is something, although there is not.
  func notifyFrontend() { monitor.withLock { _ = notify() } }

  /// Ends the thread, waits for the workers, and lets go of every page and the port.
  ///
  /// Idempotent; not from the queue's own thread.
  func detach() {
    stop.requested.store(true, ordering: .releasing)
    stop.counter.signal()
    thread.withLock { thread in
      thread?.join()
      thread = nil
    }
    monitor.withLock {
      guard isAttached else { return }
      slow.drain()
      engine.unmapAll()
      lastStatistics = current()
      lastStatistics.persistentGrants = 0
      isAttached = false
      // SAFETY: attached until now, so there is one; the ring's pages are nobody's after it.
      unsafe engineMemory.deinitialize(count: 1)
      try? unsafe grants.unmap(ringBase, count: ringPageCount)
      try? channels.unbind(port)
    }
  }

  private func current() -> BackendStatistics {
    var statistics = engine.statistics
    statistics.persistentGrants = UInt64(engine.persistent.count)
    statistics.grantsInUseAgain = engine.persistent.usedAgain
    return statistics
  }

  /// - Returns: false when it has to be tried again: there is no descriptor left for the frontend's.
  private func notify() -> Bool {
    do throws(XenError) {
      try channels.notify(port)
      engine.statistics.notificationsSent &+= 1
      return true
    } catch {
      // All else means that the handle is gone, and then so is the frontend.
      return error.code != .limitReached
    }
  }

  // MARK: The queue's own thread

  private enum Token {
    static let channel: UInt64 = 1
    static let worker: UInt64 = 2
    static let stop: UInt64 = 3
  }

  /// Carries the loop to the thread.
  private final class LoopBox: @unchecked Sendable {
    var loop: EventLoop
    init(_ loop: consuming EventLoop) { self.loop = loop }
  }

  private func serve(_ box: LoopBox) {
    var masked: EventChannelPort?
    var idleSince = MonotonicClock.nanoseconds()
    while !stop.requested.load(ordering: .acquiring) {
      if run() {
        idleSince = pollNanoseconds > 0 ? MonotonicClock.nanoseconds() : 0
        continue
      }
      if pollNanoseconds > 0, MonotonicClock.nanoseconds() &- idleSince < pollNanoseconds {
        cxen_spin_hint()
        continue
      }
      // Only a drained ring lets events through again (XSA-332).
      if let port = masked {
        masked = nil
        try? channels.unmask(port)
      }
      guard arm() else { continue }
      let count = box.loop.wait(milliseconds: idleTimeout)
      if count == 0 { monitor.withLock { if !engine.mustNotify { engine.purge() } } }
      for index in 0..<count where box.loop.event(index).token == Token.channel {
        if let port = (try? channels.nextPending()) ?? nil { masked = port }
      }
      idleSince = pollNanoseconds > 0 ? MonotonicClock.nanoseconds() : 0
    }
  }

  private func arm() -> Bool { monitor.withLock { engine.arm() } }

  /// Milliseconds after which idle grants are looked at, or a notification is tried again; nil while there are none.
  private var idleTimeout: Int32? {
    monitor.withLock {
      if engine.mustNotify { return 10 }
      let seconds = engine.parameters.configuration.persistentUnusedSeconds
      guard seconds > 0, engine.persistent.count > 0 else { return nil }
      return Int32(min(seconds, 10)) * 1000
    }
  }
}
