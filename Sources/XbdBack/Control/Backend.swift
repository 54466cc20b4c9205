// SPDX-License-Identifier: Apache-2.0
//
// A backend domain: one connection to xenstore, one control thread and one pool of workers for all its devices.
//
//   xenstore watch ──► control thread ──► XenbusMachine ──► BackendDevice ──► queues
//
// Locks: `control` is taken by the control thread for each batch of events and by every public call; a queue's own
// lock is taken inside it, never the other way round.

public import Logging
internal import Platform
internal import SystemPackage
internal import Synchronization
public import Xen

/// Serves block devices of one backend domain, until `stop`.
///
/// All calls may come from any thread.
public final class Backend: @unchecked Sendable {
  let system: any XenSystem
  let store: any XenStore
  let workers: StorageWorkers
  let control = Monitor()
  private let logger: Logger
  private let onRemoval: @Sendable (BackendDevice) -> Void
  private let onLoss: @Sendable (XenError) -> Void
  private let wakeUp: WakeUp
  private let thread = Mutex<DedicatedThread?>(nil)
  // Guarded by `control`.
  private var devices: [Int: BackendDevice] = [:]
  private var nextNumber = 0
  private var removed: [BackendDevice] = []
  /// xenstore is gone: no frontend can be waited for any more.
  private(set) var isDeaf = false

  private final class WakeUp: Sendable {
    let counter: EventCounter
    let stop = Atomic<Bool>(false)
    init() throws(Errno) { counter = try EventCounter() }
  }

  /// Connects to xenstore and starts the control thread.
  ///
  /// - Parameters:
  ///   - system: Xen as the backend's domain sees it.
  ///   - workerCount: threads that may wait for disks at the same time; they come into being when needed.
  ///   - logger: gets a line for each connection and for everything that a frontend did wrong.
  ///   - onRemoval: called on the control thread, or on the one that closed it, when a device is over.
  ///   - onLoss: called on the control thread when xenstore is gone: devices go on as they are, deaf to any change.
  public init(
    system: any XenSystem, workerCount: Int = 4, logger: Logger = Logger(label: "xbd-back"),
    onRemoval: @escaping @Sendable (BackendDevice) -> Void = { _ in },
    onLoss: @escaping @Sendable (XenError) -> Void = { _ in }
  ) throws(XenError) {
    self.system = system
    self.logger = logger
    self.onRemoval = onRemoval
    self.onLoss = onLoss
    store = try system.openXenStore()
    workers = StorageWorkers(threadCount: max(1, workerCount))
    let box: LoopBox
    do throws(Errno) {
      wakeUp = try WakeUp()
      box = LoopBox(try EventLoop(capacity: 4))
      try box.loop.add(store.fileDescriptor, .readable, token: 1)
      try box.loop.add(wakeUp.counter.fileDescriptor, .readable, token: 2)
    } catch {
      throw XenError(errno: error, "cannot start a backend of \(system.description)")
    }
    let started: DedicatedThread
    do throws(Errno) {
      // The thread holds the backend weakly between turns, so that letting go of it ends it.
      let wakeUp = wakeUp
      started = try DedicatedThread(name: "xbd-control") { [weak self] in
        // libxenstore tells nobody that its connection has ended: one has to ask.
        let heartbeat: Int32 = 2000
        var patience = heartbeat
        while !wakeUp.stop.load(ordering: .acquiring) {
          _ = box.loop.wait(milliseconds: patience)
          wakeUp.counter.drain()
          guard let self, self.turn() else { return }
          patience = min(heartbeat, self.patience ?? heartbeat)
        }
      }
    } catch {
      throw XenError(errno: error, "no thread for a backend of \(system.description)")
    }
    thread.withLock { $0 = started }
  }

  deinit {
    wakeUp.stop.store(true, ordering: .releasing)
    wakeUp.counter.signal()
    workers.stop()
  }

  /// Begins to serve a device whose nodes the toolstack has created.
  ///
  /// - Parameters:
  ///   - directory: the backend's directory of it, such as `/local/domain/0/backend/vbd/1/51728`; it holds
  ///     `frontend` and `frontend-id`.
  ///   - storage: what its bytes are kept in.
  ///   - configuration: what it offers.
  ///   - endsWithFrontend: the device is over when the frontend's directory goes, as it does with its domain. For
  ///     nodes that no toolstack looks after.
  /// - Returns: the device, which is in InitWait unless the frontend is further already.
  /// - Throws: `.notFound` without those nodes, `.invalid` for a configuration that makes no sense, `.denied` when
  ///   another process of this machine serves the device.
  @discardableResult
  public func add(
    directory: String, storage: any Storage, configuration: BackendConfiguration = BackendConfiguration(),
    endsWithFrontend: Bool = false
  ) throws(XenError) -> BackendDevice {
    let (device, over) = try control.withLock { () throws(XenError) in
      let device = try BackendDevice(
        backend: self, number: nextNumber, directory: directory, storage: storage,
        configuration: configuration, endsWithFrontend: endsWithFrontend, logger: logger)
      nextNumber += 1
      devices[device.number] = device
      do throws(XenError) {
        for (path, kind) in watches(of: device) { try store.watch(path, token: token(device, kind)) }
      } catch {
        forget(device)
        removed.removeAll { $0 === device }
        throw error
      }
      device.frontendChanged()
      if device.patience != nil { wakeUp.counter.signal() }
      return (device, takeRemoved())
    }
    report(over)
    return device
  }

  /// The devices that are served.
  public var allDevices: [BackendDevice] {
    control.withLock { devices.values.sorted { $0.number < $1.number } }
  }

  /// Ends every device and the threads.
  ///
  /// - Parameter milliseconds: how long each frontend may take to close by itself; 0 does not wait.
  public func stop(waiting milliseconds: UInt64 = 0) {
    for device in allDevices { device.close(waiting: milliseconds) }
    wakeUp.stop.store(true, ordering: .releasing)
    wakeUp.counter.signal()
    thread.withLock { thread in
      thread?.join()
      thread = nil
    }
    workers.stop()
  }

  // MARK: For devices and queues

  /// A queue has news; called from its thread.
  func queueChanged() { wakeUp.counter.signal() }

  /// Ends the watches of a device; under the control lock.
  func forget(_ device: BackendDevice) {
    guard devices.removeValue(forKey: device.number) != nil else { return }
    for (path, kind) in watches(of: device) { try? store.unwatch(path, token: token(device, kind)) }
    removed.append(device)
  }

  /// Takes note that xenstore is gone; under the control lock.
  func becomeDeaf() {
    isDeaf = true
    control.signalAll()
  }

  /// The devices that ended and were not reported; under the control lock.
  func takeRemoved() -> [BackendDevice] {
    let list = removed
    removed = []
    return list
  }

  /// Tells the owner; without the lock.
  func report(_ devices: [BackendDevice]) {
    for device in devices { onRemoval(device) }
  }

  // MARK: The control thread

  private final class LoopBox: @unchecked Sendable {
    var loop: EventLoop
    init(_ loop: consuming EventLoop) { self.loop = loop }
  }

  /// Handles everything that has happened.
  ///
  /// - Returns: false when xenstore is gone.
  private func turn() -> Bool {
    var lost: XenError?
    let over = control.withLock { () -> [BackendDevice] in
      // Any number of events of one node are one event (XSA-349).
      var changed: Set<String> = []
      do throws(XenError) {
        var left = 1024
        while left > 0, let event = try store.nextWatchEvent() {
          changed.insert(event.token)
          left -= 1
        }
      } catch {
        logger.error("the connection to xenstore is gone: \(error)")
        lost = error
        becomeDeaf()
      }
      for device in devices.values.sorted(by: { $0.number < $1.number }) {
        if changed.contains(token(device, .directory)) { device.directoryChanged() }
        if changed.contains(token(device, .frontend)) { device.frontendChanged() }
        device.checkRings()
        device.checkPatience(now: MonotonicClock.nanoseconds())
      }
      return takeRemoved()
    }
    report(over)
    if let lost { onLoss(lost) }
    return lost == nil
  }

  /// Milliseconds until a frontend has had its time; nil when none is waited for.
  private var patience: Int32? {
    control.withLock {
      guard let first = devices.values.compactMap(\.patience).min() else { return nil }
      let now = MonotonicClock.nanoseconds()
      return first <= now ? 0 : Int32(clamping: (first - now) / 1_000_000 + 1)
    }
  }

  private enum WatchKind: String {
    case frontend
    case directory
  }

  private func watches(of device: BackendDevice) -> [(String, WatchKind)] {
    [
      ("\(device.frontendDirectory)/state", .frontend), ("\(device.directory)/state", .directory),
      ("\(device.directory)/online", .directory),
    ]
  }

  private func token(_ device: BackendDevice, _ kind: WatchKind) -> String {
    "xbd-back-\(device.number)-\(kind.rawValue)"
  }
}
