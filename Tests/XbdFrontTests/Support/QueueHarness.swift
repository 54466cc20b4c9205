// SPDX-License-Identifier: Apache-2.0
//
// One queue, its fake Xen and its scripted backend, stepped by one thread: either the backend runs inside `poll`, or
// it runs between two polls, and then only if a real one would have been woken. A sleep that nothing would end is
// a stall, and a stall fails the test.

import Blkif
import CXen
import Glibc
import Platform
import Testing
import Xen

@testable import XbdFront

/// What a test's queue is like.
struct QueueSetup: CustomStringConvertible {
  var copy = CopyMode.direct
  var grants = GrantMode.persistent
  var maxSegments = 32
  var ringPageOrder = 0
  var sectorSize = 512
  var poolPages = 256
  var isInline = true
  var diskBytes = 2 << 20
  var limit = 100_000
  var flush = FlushMethod.flushCache
  var hasBarrier = false
  var discard: DiscardLimits?
  var trusted = true
  var isReadOnly = false
  var start: UInt32 = 0
  var abi = ABI.native
  /// Brings `maxSegments` down as negotiation would.
  var negotiates = true
  /// As with `FrontendOptions.reconnects`.
  var keepsWrites = false
  var sectorShift: UInt64 = 9
  var requestTimeout: Duration?

  var description: String {
    "\(copy) \(grants) segments \(maxSegments) order \(ringPageOrder) sector \(sectorSize) pool \(poolPages) "
      + (isInline ? "inline" : "remote")
  }

  var parameters: QueueParameters {
    var options = FrontendOptions()
    options.maxSegments = maxSegments
    options.poolPages = poolPages
    options.ringPageOrder = ringPageOrder
    let features = try? TransportFeatures([
      Key.featureMaxIndirectSegments: Array("4096".utf8), Key.maxRingPageOrder: Array("4".utf8),
    ])
    let segments =
      negotiates
      ? features.map { TransportParameters(options, $0).maxSegments } ?? maxSegments : maxSegments
    var parameters = QueueParameters(
      backend: .dom0, handle: 0xCA10, abi: abi, maxSegments: segments, sectorCount: UInt64(diskBytes / 512),
      sectorSize: sectorSize, isReadOnly: isReadOnly, flush: flush, hasBarrier: hasBarrier, discard: discard,
      trusted: trusted, copy: copy, grants: grants, poolPages: poolPages)
    parameters.keepsWrites = keepsWrites
    parameters.sectorShift = sectorShift
    parameters.requestTimeout = requestTimeout
    return parameters
  }
}

/// A queue with everything around it.
final class QueueHarness {
  private(set) var setup: QueueSetup
  let sharing: FakeGrants
  private(set) var channels: FakeEventChannels
  private(set) var backend: ScriptedBackend
  let queue: BlockQueue
  let control: QueueControl
  let reports: Reports
  var completions: [Completion] = []
  /// Called for each completion instead of noting it.
  var onCompletion: ((Completion) -> Void)?
  private var nextTag: UInt64 = 1

  init(
    _ setup: QueueSetup = QueueSetup(), index: Int = 0, gate: WriteGate = WriteGate(),
    disk: UnsafeMutableBufferPointer<UInt8>? = nil
  ) throws {
    self.setup = setup
    sharing = FakeGrants(limit: setup.limit)
    channels = try FakeEventChannels()
    let port = try channels.bindUnbound(remote: .dom0)
    let ringGrants = FakeGrants()
    let ringPages = try ringGrants.share(
      pages: 1 << setup.ringPageOrder, with: .dom0, writable: true, notification: nil)
    let ring = FrontRing(
      pages: ringPages.baseAddress, pageCount: ringPages.pageCount, abi: setup.abi, startingAt: setup.start)
    let reports = Reports()
    self.reports = reports
    mapped = [ringPages]
    control = QueueControl(queue: index) { reports.add($0) }
    let parameters = setup.parameters
    let pool = GrantPool(
      sharing: sharing, backend: .dom0, mode: parameters.grants, bound: parameters.poolPages)
    let core = QueueCore(index: index, parameters: parameters, ring: ring, pool: pool, gate: gate)
    queue = BlockQueue(
      core: core, channels: channels, port: port, ringPages: ringPages, control: control,
      wakeup: try EventCounter())
    backend = try ScriptedBackend(
      ringPages: ringPages, abi: setup.abi, grants: sharing, diskBytes: setup.diskBytes, sharing: disk)
    backend.sectorSize = setup.sectorSize
    let channels = channels
    backend.notifyFrontend = { channels.raise() }
    if setup.isInline { queue.runInline(backend) }
    queue.onCompletion = { [unowned self] completion in
      if let call = onCompletion { call(completion) } else { completions.append(completion) }
    }
  }

  // MARK: Reconnecting

  /// The backend ends where it stands; what it held is never answered.
  func loseBackend() {
    control.suspend()
    backendSleeps = true
    queue.poll()
  }

  /// Another backend with the same disk connects, which may be poorer or richer.
  func reconnect(_ new: QueueSetup? = nil) throws {
    if let new { setup = new }
    channels = try FakeEventChannels()
    let port = try channels.bindUnbound(remote: .dom0)
    let ringPages = try FakeGrants().share(
      pages: 1 << setup.ringPageOrder, with: .dom0, writable: true, notification: nil)
    let ring = FrontRing(
      pages: ringPages.baseAddress, pageCount: ringPages.pageCount, abi: setup.abi, startingAt: setup.start)
    let pool = GrantPool(sharing: sharing, backend: .dom0, mode: setup.grants, bound: setup.poolPages)
    let old = backend
    backend = try ScriptedBackend(
      ringPages: ringPages, abi: setup.abi, grants: sharing, diskBytes: setup.diskBytes, sharing: old.disk)
    earlier.append(old)
    mapped.append(ringPages)
    backend.sectorSize = setup.sectorSize
    backend.judge = old.judge
    backend.keepsLog = old.keepsLog
    let channels = channels
    backend.notifyFrontend = { channels.raise() }
    backendSleeps = true
    let link = QueueLink(
      parameters: setup.parameters, ring: ring, pool: pool, channels: channels, port: port,
      ringPages: ringPages)
    control.tell { $0.link = link }
    queue.poll()
    if setup.isInline {
      queue.runInline(backend)
      queue.poll()
    }
  }
  /// They own the disk.
  private var earlier: [ScriptedBackend] = []
  /// What the backends have mapped of rings, whether or not those are still shared.
  private var mapped: [SharedPages] = []

  // MARK: Stepping

  private var backendSleeps = true

  /// One turn of the owner's loop and of the backend.
  ///
  /// - Returns: false when everybody sleeps and nothing will wake anybody.
  @discardableResult
  func turn() -> Bool {
    if queue.poll() { return true }
    guard queue.armWakeup() else { return true }
    if !setup.isInline, runBackend() { return true }
    return isReadable(queue.descriptors)
  }

  /// Runs the backend if it is awake or was notified.
  func runBackend() -> Bool {
    if channels.takeBackendNotification() || backend.isDue { backendSleeps = false }
    if backendSleeps { return false }
    let served = backend.run()
    if backend.arm() { backendSleeps = true }
    return served || !backendSleeps
  }

  /// Turns until nothing moves.
  func settle() {
    for _ in 0..<1_000_000 where !turn() { return }
    Issue.record("the queue never comes to rest")
  }

  func isReadable(_ descriptors: [Int32]) -> Bool {
    var polled = descriptors.map { pollfd(fd: $0, events: Int16(POLLIN), revents: 0) }
    return Glibc.poll(&polled, nfds_t(polled.count), 0) > 0
  }

  /// Sleeps as the owner's thread would; at most a second, so that a test ends all the same.
  func sleep() {
    var polled = queue.descriptors.map { pollfd(fd: $0, events: Int16(POLLIN), revents: 0) }
    _ = Glibc.poll(&polled, nfds_t(polled.count), 1000)
  }

  // MARK: Whole requests

  func begin(
    _ command: BlockRequest.Command, _ offset: UInt64 = 0, _ count: UInt64 = 0, fua: Bool = false
  ) -> OperationID? {
    defer { nextTag += 1 }
    return queue.begin(
      BlockRequest(command: command, forceUnitAccess: fua, byteOffset: offset, byteCount: count), tag: nextTag
    )
  }

  func fill(_ operation: OperationID, _ data: [UInt8]) {
    let vectors = memory(operation)
    // An operation that is only there to fail has no memory.
    #expect(vectors.isEmpty || vectors.reduce(0) { $0 + $1.iov_len } == data.count)
    var done = 0
    for vector in vectors {
      guard let base = vector.iov_base, done + vector.iov_len <= data.count else { return }
      data.withUnsafeBytes { bytes in
        _ = bytes.baseAddress.map { memcpy(base, $0 + done, vector.iov_len) }
      }
      done += vector.iov_len
    }
  }

  func contents(_ operation: OperationID) -> [UInt8] {
    var bytes: [UInt8] = []
    for vector in memory(operation) {
      bytes.append(contentsOf: UnsafeRawBufferPointer(start: vector.iov_base, count: vector.iov_len))
    }
    return bytes
  }

  /// All vectors of an operation, asked for a few at a time.
  func memory(_ operation: OperationID) -> [iovec] {
    var result: [iovec] = []
    var offset = 0
    let some = UnsafeMutableBufferPointer<iovec>.allocate(capacity: 3)
    defer { some.deallocate() }
    while true {
      let count = queue.vectors(of: operation, from: offset, into: some)
      if count == 0 { return result }
      for index in 0..<count {
        result.append(some[index])
        offset += some[index].iov_len
      }
    }
  }

  /// Begins, fills and submits; turns the wheel while resources are short.
  @discardableResult
  func submit(
    _ command: BlockRequest.Command, _ offset: UInt64 = 0, _ count: UInt64 = 0, fua: Bool = false,
    data: [UInt8]? = nil
  ) -> OperationID? {
    for _ in 0..<100_000 {
      if let operation = begin(command, offset, count, fua: fua) {
        if let data { fill(operation, data) }
        queue.submit(operation)
        return operation
      }
      if !turn() { break }
    }
    Issue.record("no resources for \(command) \(count) at \(offset), ever: \(setup)")
    return nil
  }

  /// One operation from beginning to end.
  func perform(
    _ command: BlockRequest.Command, _ offset: UInt64 = 0, _ count: UInt64 = 0, fua: Bool = false,
    data: [UInt8]? = nil
  ) -> (status: OperationStatus?, data: [UInt8]) {
    guard let operation = submit(command, offset, count, fua: fua, data: data) else { return (nil, []) }
    settle()
    guard let place = completions.firstIndex(where: { $0.operation == operation }) else { return (nil, []) }
    let completion = completions.remove(at: place)
    let bytes = command == .read ? contents(operation) : []
    queue.release(operation)
    return (completion.status, bytes)
  }

  func status(
    _ command: BlockRequest.Command, _ offset: UInt64 = 0, _ count: UInt64 = 0, fua: Bool = false
  ) -> OperationStatus? {
    let data = command == .write ? [UInt8](repeating: 0x77, count: Int(count)) : nil
    return perform(command, offset, count, fua: fua, data: data).status
  }

  func write(_ offset: UInt64, _ data: [UInt8], fua: Bool = false) -> OperationStatus? {
    perform(.write, offset, UInt64(data.count), fua: fua, data: data).status
  }

  /// Statuses of everything that completed, and releases it.
  func takeStatuses() -> [OperationStatus] {
    defer { completions = [] }
    for completion in completions { queue.release(completion.operation) }
    return completions.map(\.status)
  }

  var diskBytes: [UInt8] { Array(backend.disk) }
}

/// What a queue told its device.
final class Reports: Sendable {
  private let guarded = Guarded<[QueueReport]>([])
  func add(_ report: QueueReport) { guarded.with { $0.append(report) } }
  var all: [QueueReport] { guarded.with { $0 } }
  var messages: [String] {
    all.compactMap {
      switch $0 {
      case .message(let text), .limit(_, let text): text
      default: nil
      }
    }
  }
  var violations: [ProtocolViolation] {
    all.compactMap { if case .violation(_, let violation) = $0 { violation } else { nil } }
  }
  var drained: Int { all.filter { if case .drained = $0 { true } else { false } }.count }
}
