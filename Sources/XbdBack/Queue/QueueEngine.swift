// SPDX-License-Identifier: Apache-2.0
//
// The data plane of one ring: takes requests, has them done, pushes responses. Owned by whoever holds the queue's
// lock; knows nothing of threads and event channels.
//
//   ring ──► take ──► validate ──► pages ──► storage ──► finish ──► ring
//                                              └► worker ──┘
//
// Nothing that comes out of the ring or out of a granted page is trusted: each is copied once and then checked.
// Source: blkif.h; Linux xen-blkback/blkback.c: do_block_io_op, dispatch_rw_block_io, dispatch_discard_io.

internal import Blkif
internal import CXen
internal import Glibc
internal import Platform
internal import SystemPackage
internal import Xen

/// One ring's requests, from taking to answering.
@safe struct QueueEngine: ~Copyable {
  var ring: BackRing
  let parameters: QueueParameters
  let storage: any Storage
  let grants: any GrantMapping
  let pending: PendingRequests
  let slow: SlowLane
  /// The size in 512-byte sectors; changed by a resize.
  var sectorCount: UInt64
  var statistics = BackendStatistics()
  /// Why no request is taken any more.
  var violation: RingViolation?
  /// What was answered EOPNOTSUPP although it was offered.
  var withdrawn = Withdrawal()
  /// Nothing is done or answered any more: on purpose, or because the ring is lost.
  var isStopped = false
  /// The ring is not granted any more (`cannotReach`).
  var hasLostRing = false
  /// What goes wrong with the request that is being taken.
  var nextFault = SlotFault.none
  private var lateAnswers: [(id: UInt64, operation: UInt8, status: ResponseStatus)] = []
  /// Set when responses became visible since it was last cleared, and the frontend wants to hear of it.
  var mustNotify = false

  /// What the ring's first page was mapped by.
  let ringReference: GrantRef
  var persistent: PersistentGrants
  let sectorMask: UInt64
  /// Slots that no request has.
  private var free: Table<UInt32>
  private var freeCount: Int
  // SAFETY: 128 bytes, allocated by the initialiser, given back in the deinit; written by `takeRequest` only, and read
  // through the `WireRequest` that it makes, until the next.
  private let requestCopy: UnsafeMutableRawPointer
  /// Where the segments of the request that is being taken lie; scratch.
  var addresses: Table<MappedPage?>
  /// What is to be mapped for it; scratch.
  var references: Table<GrantRef>
  /// What is to be copied for it; scratch, and of no elements without grant copy.
  var copies: Table<GrantCopySegment>
  private var completed: Table<UInt32>
  /// Slots that are with a worker.
  private var away = 0
  /// A barrier that waits for them, or is itself with a worker: nothing is taken meanwhile.
  private var barrier: UInt32?
  private var barrierIsAway = false
  var second: UInt32 = 0
  private var nextPurge: UInt64 = 0
  /// Responses pushed since the frontend was last shown them.
  private var unpublished: UInt32 = 0

  /// - Parameters:
  ///   - ring: this end of it.
  ///   - ringReference: what its first page was mapped by.
  ///   - pending: as many slots as the ring has.
  ///   - slow: the way to the workers for those slots.
  init(
    ring: consuming BackRing, ringReference: GrantRef, parameters: QueueParameters, storage: any Storage,
    grants: any GrantMapping, sectorCount: UInt64, pending: PendingRequests, slow: SlowLane
  ) {
    let capacity = Int(ring.capacity)
    let configuration = parameters.configuration
    let copying = configuration.dataPath == .grantCopy
    let maxSegments = pending.maxSegments
    self.pending = pending
    self.slow = slow
    self.ring = ring
    self.ringReference = ringReference
    self.parameters = parameters
    self.storage = storage
    self.grants = grants
    self.sectorCount = sectorCount
    sectorMask = UInt64(configuration.sectorSize / BlkIf.sectorSize - 1)
    persistent = PersistentGrants(limit: parameters.persistent ? configuration.maxPersistentGrants : 0)
    persistent.refusesUsed = configuration.mapsAgainWhatIsInUse
    free = Table(count: capacity) { UInt32(capacity - 1 - $0) }
    freeCount = capacity
    // SAFETY: new memory, filled to its end.
    unsafe requestCopy = .allocate(byteCount: 128, alignment: 16)
    unsafe requestCopy.initializeMemory(as: UInt8.self, repeating: 0, count: 128)
    addresses = Table(repeating: nil, count: maxSegments)
    references = Table(repeating: GrantRef(0), count: maxSegments)
    let domain = parameters.frontend
    let nothing = GrantCopySegment.Place.granted(GrantRef(0), domain, offset: 0)
    copies = Table(
      repeating: GrantCopySegment(source: nothing, destination: nothing, byteCount: 0),
      count: copying ? maxSegments : 0)
    completed = Table(repeating: 0, count: capacity)
  }

  deinit {
    // SAFETY: of the initialiser; no request is being taken.
    unsafe requestCopy.deallocate()
  }

  /// Requests taken and not answered.
  var inFlight: Int { pending.capacity - freeCount }

  /// Does everything that can be done now.
  ///
  /// - Returns: whether a request was taken or answered.
  mutating func run() -> Bool {
    var didSomething = slow.hasCompleted && collect()
    guard violation == nil, !isStopped else { return didSomething }
    let interval = UInt32(truncatingIfNeeded: parameters.configuration.publishInterval)
    // A frontend that produces as fast as we consume must not keep the lock from the control plane for ever.
    var budget = ring.capacity &* 8
    while true {
      if barrier != nil, !tryBarrier() { break }
      if holdsBatch { break }
      let available: UInt32
      do throws(RingViolation) {
        available = try ring.availableRequests()
      } catch {
        violation = error
        break
      }
      if available == 0 || budget < available { break }
      budget &-= available
      if !didSomething { readClock() }
      didSomething = true
      var left = available
      while left > 0, barrier == nil, !isStopped {
        // SAFETY: it has more than the 112 bytes asked for, and nobody else looks at them.
        handle(unsafe ring.takeRequest(into: requestCopy))
        left &-= 1
        if interval != 0, unpublished >= interval { publish() }
      }
    }
    while let answer = lateAnswers.popLast() {
      self.answer(id: answer.id, operation: answer.operation, answer.status)
    }
    if ring.hasUnpublished, !holdsBatch { publish() }
    return didSomething
  }

  /// Requests that were taken together are not all done, and are answered together.
  private var holdsBatch: Bool { away > 0 && parameters.configuration.answersWholeBatches }

  /// Asks the frontend for a notification of its next request.
  ///
  /// - Returns: false when there is something to do right now.
  mutating func arm() -> Bool {
    if slow.hasCompleted { return false }
    // Behind a barrier nothing is taken; the worker's wake-up comes first.
    if violation != nil || barrier != nil || holdsBatch || isStopped { return true }
    return ring.armNotification()
  }

  /// Lets go of grants that were not used for long, or for which others had no room.
  mutating func purge() {
    let configuration = parameters.configuration
    guard persistent.count > 0 else { return }
    readClock()
    unmapPurged(percent: configuration.purgePercent, unusedSeconds: configuration.persistentUnusedSeconds)
  }

  /// Unmaps everything; only when no slot is with a worker.
  mutating func unmapAll() {
    for slot in 0..<pending.capacity { release(UInt32(slot)) }
    let grants = grants
    persistent.removeAll { $0.unmap(grants) }
  }

  private mutating func publish() {
    if isStopped { return }
    unpublished = 0
    if ring.publish() == .required {
      mustNotify = true
    } else {
      statistics.notificationsSuppressed &+= 1
    }
  }

  private mutating func readClock() {
    var now = timespec()
    // The coarse clock is a read of shared memory, a few nanoseconds; it is good for seconds and purges.
    // SAFETY: the call fills the local variable.
    unsafe clock_gettime(CLOCK_MONOTONIC_COARSE, &now)
    second = UInt32(truncatingIfNeeded: now.tv_sec)
    let milliseconds = UInt64(truncatingIfNeeded: now.tv_sec &* 1000 &+ now.tv_nsec / 1_000_000)
    guard milliseconds >= nextPurge else { return }
    nextPurge = milliseconds &+ UInt64(parameters.configuration.purgeIntervalMilliseconds)
    guard persistent.count > 0 else { return }
    unmapPurged(
      percent: parameters.configuration.purgePercent,
      unusedSeconds: parameters.configuration.persistentUnusedSeconds)
  }

  private mutating func unmapPurged(percent: Int, unusedSeconds: UInt32) {
    let grants = grants
    var evicted: UInt64 = 0
    persistent.purge(percent: percent, unusedSeconds: unusedSeconds, second: second) { page in
      page.unmap(grants)
      evicted &+= 1
    }
    statistics.persistentEvictions &+= evicted
    statistics.mapCalls &+= evicted
  }

  // MARK: Slots

  /// A slot for a request that passed its checks so far.
  ///
  /// There is one: the ring cannot hold more requests.
  @inline(__always)
  mutating func takeSlot() -> UInt32 {
    precondition(freeCount > 0, "more requests than the ring has slots")
    freeCount &-= 1
    return free[freeCount]
  }

  /// Sends a slot's work to the storage, and to a worker when it would wait.
  @inline(__always)
  mutating func dispatch(_ slot: UInt32) {
    let outcome = attempt(slot)
    if outcome == .wouldBlock {
      away &+= 1
      statistics.slowRequests &+= 1
      slow.submit(slot)
    } else {
      pending[slot].outcome = outcome
      finish(slot)
    }
  }

  @inline(__always)
  private mutating func attempt(_ slot: UInt32) -> StorageOutcome {
    if pending[slot].flushBefore || pending[slot].flushAfter { return attemptWithFlush(slot) }
    if pending[slot].fault.delay > 0 { return .wouldBlock }
    return storage.attempt(&pending[slot].work)
  }

  private mutating func attemptWithFlush(_ slot: UInt32) -> StorageOutcome {
    if pending[slot].fault.delay > 0 { return .wouldBlock }
    var flush = StorageRequest(.flush, byteOffset: 0, byteCount: 0)
    let first = pending[slot].flushBefore ? storage.attempt(&flush) : .done
    guard first == .done, pending[slot].hasBody else { return first }
    let body = storage.attempt(&pending[slot].work)
    guard body == .done, pending[slot].flushAfter else { return body }
    let last = storage.attempt(&flush)
    if last == .wouldBlock {
      // Only the second flush is left for the worker.
      count(slot)
      pending[slot].flushBefore = false
      pending[slot].hasBody = false
    }
    return last
  }

  /// Holds a barrier until nothing is with the workers.
  mutating func hold(_ slot: UInt32) {
    barrier = slot
    barrierIsAway = false
  }

  /// - Returns: whether requests may be taken again.
  private mutating func tryBarrier() -> Bool {
    guard let slot = barrier, !barrierIsAway, away == 0 else { return barrier == nil }
    // The disk may have become shorter since the range was checked.
    let (end, isEndless) = pending[slot].work.byteOffset.addingReportingOverflow(pending[slot].work.byteCount)
    if pending[slot].hasBody, isEndless || end > sectorCount &* UInt64(BlkIf.sectorSize) {
      self.end(slot, .failed(EIO))
    } else {
      barrierIsAway = true
      dispatch(slot)
    }
    return barrier == nil
  }

  private mutating func collect() -> Bool {
    let count = slow.takeCompleted(into: &completed)
    for position in 0..<count {
      away &-= 1
      finish(completed[position])
    }
    return count > 0
  }

  /// Answers a request whose work has ended.
  @inline(__always)
  private mutating func finish(_ slot: UInt32) {
    if pending[slot].isStaged { unstage(slot) }
    if pending[slot].outcome == .done { count(slot) }
    let status: ResponseStatus =
      switch pending[slot].outcome {
      case .done: .okay
      case .notSupported: .notSupported
      case .failed, .wouldBlock: .error
      }
    release(slot)
    if barrier == slot { barrier = nil }
    let id = pending[slot].id
    let operation = pending[slot].responseOperation
    free[freeCount] = slot
    freeCount &+= 1
    if pending[slot].fault != .none { return answerWrongly(pending[slot].fault, id, operation, status) }
    answer(id: id, operation: operation, status)
  }

  private mutating func answerWrongly(
    _ fault: SlotFault, _ id: UInt64, _ operation: UInt8, _ status: ResponseStatus
  ) {
    switch fault {
    case .drop: break
    case .late: lateAnswers.append((id, operation, status))
    default: answer(id: id, operation: operation, status)
    }
  }

  /// Pushes a response.
  @inline(__always)
  mutating func answer(id: UInt64, operation: UInt8, _ status: ResponseStatus) {
    if isStopped { return }
    switch status {
    case .okay: break
    case .error: statistics.errors &+= 1
    case .notSupported: statistics.notSupported &+= 1
    }
    ring.push(id: id, operation: operation, status: status.wire)
    unpublished &+= 1
  }

  @inline(__always)
  private mutating func count(_ slot: UInt32) {
    guard pending[slot].hasBody else { return }
    let sectors = pending[slot].work.byteCount / UInt64(BlkIf.sectorSize)
    switch pending[slot].work.operation {
    case .read: statistics.sectorsRead &+= sectors
    case .write: statistics.sectorsWritten &+= sectors
    case .discard, .secureDiscard: statistics.sectorsDiscarded &+= sectors
    case .flush: break
    }
  }

  /// Lets go of what a request had mapped for itself, and of its hold on what is kept.
  @inline(__always)
  mutating func release(_ slot: UInt32) {
    let uses = pending.uses(slot)
    for position in 0..<pending[slot].useCount { persistent.release(uses[position]) }
    pending[slot].useCount = 0
    if pending[slot].transientCount > 0 { unmapTransients(slot) }
  }

  private mutating func unmapTransients(_ slot: UInt32) {
    let transients = pending.transients(slot)
    for position in 0..<pending[slot].transientCount {
      transients[position].unmap(grants)
      statistics.mapCalls &+= 1
    }
    pending[slot].transientCount = 0
  }

  /// Lets go of a request that is never answered.
  mutating func abandon(_ slot: UInt32) {
    release(slot)
    free[freeCount] = slot
    freeCount &+= 1
  }

  /// Answers a request that a check ended.
  mutating func end(_ slot: UInt32, _ outcome: StorageOutcome) {
    pending[slot].outcome = outcome
    finish(slot)
  }
}
