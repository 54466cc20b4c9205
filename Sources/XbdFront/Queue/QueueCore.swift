// SPDX-License-Identifier: Apache-2.0
//
// The state of one queue: its ring, its granted pages, its operations and what is in flight. One thread owns it;
// nothing here waits, locks or, in the steady state, allocates.
//
//   begin ─► (caller fills a write's memory) ─► submit ─► QueueCore+Issue: segments, ring requests
//                                                              │ publish, notify
//   release ◄─ (caller uses a read's memory) ◄─ completed ◄─ QueueCore+Responses
//
// `BlockQueue` wraps it. It is a struct behind a pointer so that the compiler proves exclusive access once instead
// of checking it at every field.

internal import Blkif
internal import Platform
internal import Xen

struct QueueCore: ~Copyable {
  /// Operations that callers may have begun at once.
  static let operationCapacity = 1024
  /// The largest read or write, in bytes.
  static let maxByteCount: UInt64 = 64 << 20
  /// Bytes that an operation may put into the ring before others get their turn.
  static let fairTurn: UInt64 = 1 << 20
  /// The same where the backend runs on this thread: while it copies more, a client fills its socket and has to wait.
  static let shortTurn: UInt64 = 128 << 10

  let index: Int
  var parameters: QueueParameters
  var ring: FrontRing
  var pool: GrantPool
  var buffers = BufferCache()
  var inFlight: InFlightTable
  var operations = Table(count: Self.operationCapacity) {
    OperationRecord(next: $0 + 1 < Self.operationCapacity ? Int32($0 + 1) : -1)
  }
  let gate: WriteGate
  var counters = QueueCounters()
  /// What the time says of the backend.
  var time: StallWatch

  /// Free places in the operation table, last in, first out.
  var freeOperation: Int32 = 0
  /// Operations with something to put into the ring.
  var pending = OperationList()
  /// Operations held back by the write gate.
  var parked = OperationList()
  /// Operations that ended and were not reported yet.
  var completed = OperationList()
  /// The unaligned write of this queue that runs alone or is about to; -1 when there is none.
  var alone: Int32 = -1
  /// One that was given up, and may still be written, keeps everybody else's writes out.
  var keepsGateShut = false
  /// Granted pages of operations, from `begin` to the end of their use.
  var operationPages = 0
  /// Those of them in operations that wait for their caller, not for the backend.
  var pagesHeldByCallers = 0
  /// Granted pages in flight for copies and zeroes.
  var copyPages = 0
  /// Pages for want of which a caller was sent away last; 0 once one has found some.
  var pagesWanted = 0
  /// Copies then keep to their quarter of the pool.
  var callersWantPages: Bool { pagesWanted > 0 }
  /// Set when pages came back for which a caller was sent away.
  var pagesCameBack = false
  /// Set when something came up that the next turn of `poll` can move forward.
  var hasWork = false
  /// Set while the backend runs on this thread: what is asked of it in one turn holds up everybody else.
  var sharesThread = false
  /// Set when a turn ended with more to do, so that the caller can look after others.
  var hasPaused = false
  /// Operations submitted and not reported.
  var unfinished = 0
  /// Operations of queues without a ring.
  var relays = RelayState()
  /// Set when the backend broke the protocol; everything fails until the device is connected again.
  var broken: ProtocolViolation?
  /// Set when the queue is broken or given up, or has no ring until the device is connected again: the ring is looked
  /// at no more, and no page of it is used again, because the backend may still be writing.
  var isDead = false
  /// Everything that was submitted has been ended with an error.
  var isGivenUp = false
  /// Nothing more goes into the ring: the backend is closing, and another one is waited for.
  var isHolding = false
  /// What new operations fail with: the device is closing or gone.
  var refusal: OperationStatus?

  init(
    index: Int, parameters: QueueParameters, ring: consuming FrontRing, pool: consuming GrantPool,
    gate: WriteGate
  ) {
    self.index = index
    self.parameters = parameters
    inFlight = InFlightTable(capacity: Int(ring.capacity))
    self.ring = ring
    self.pool = pool
    self.gate = gate
    time = StallWatch(timeout: parameters.requestTimeout?.nanoseconds ?? 0)
  }

  deinit {
    for slot in 0..<Self.operationCapacity { operations[slot].buffer?.deallocate() }
  }

  // MARK: Beginning and ending

  mutating func begin(_ request: BlockRequest, tag: UInt64) -> OperationID? {
    let slot = freeOperation
    guard slot >= 0 else {
      counters.waitsForOperations &+= 1
      return nil
    }
    var operation = OperationRecord()
    operation.generation = operations[slot].generation &+ 1
    operation.command = request.command
    operation.forceUnitAccess = request.forceUnitAccess
    operation.isSecure = request.isSecure
    operation.tag = tag
    operation.status = check(request)
    if operation.status == .okay, request.command != .flush {
      let mask = UInt64(parameters.sectorSize - 1)
      let start = request.byteOffset & ~mask
      operation.byteOffset = request.byteOffset
      operation.byteCount = request.byteCount
      operation.alignedOffset = start
      operation.alignedCount = ((request.byteOffset + request.byteCount + mask) & ~mask) - start
      operation.isUnaligned = (request.byteOffset | request.byteCount) & mask != 0
      guard giveMemory(&operation) else { return nil }
    } else if request.command == .write, request.byteCount > 0, request.byteCount <= Self.maxByteCount {
      // It will fail, but its payload is on its way and has to go somewhere.
      operation.byteCount = request.byteCount
      operation.buffer = buffers.take(Int(request.byteCount))
      guard operation.buffer != nil else { return nil }
    }
    operation.state = .begun
    freeOperation = operations[slot].next
    operations[slot] = operation
    return OperationID(index: slot, generation: operation.generation)
  }

  /// What is wrong with a request before anything is done for it.
  ///
  /// It changes nothing; `mutating` keeps Swift 6.3 from copying the whole core for the length of the call.
  private mutating func check(_ request: BlockRequest) -> OperationStatus {
    if broken != nil { return .ioError }
    if let refusal { return refusal }
    if request.command == .flush { return parameters.flush == .none ? .notSupported : .okay }
    let size = parameters.sectorCount << 9
    guard request.byteOffset <= size, request.byteCount <= size - request.byteOffset else {
      return .outOfRange
    }
    switch request.command {
    case .read:
      return request.byteCount <= Self.maxByteCount ? .okay : .outOfRange
    case .write, .writeZeroes, .discard:
      if parameters.isReadOnly { return .readOnly }
      if request.forceUnitAccess, parameters.flush == .none { return .notSupported }
      if request.command == .discard, !canDiscard(securely: request.isSecure) { return .notSupported }
      return request.command == .write && request.byteCount > Self.maxByteCount ? .outOfRange : .okay
    case .flush:
      return .okay
    }
  }

  private func canDiscard(securely: Bool) -> Bool {
    guard let discard = parameters.discard else { return false }
    return discard.secure || !securely
  }

  /// Finds the memory that an operation's payload passes through.
  ///
  /// Granted pages where they serve, for up to two thirds of the pool; private memory for copying otherwise. Operations
  /// hold at most three quarters of the pool, because slow callers can keep it for as long as they like: what is copied
  /// always finds some.
  ///
  /// - Returns: false when there is none at the moment.
  @inline(__always)
  private mutating func giveMemory(_ operation: inout OperationRecord) -> Bool {
    let command = operation.command
    let isUnaligned = operation.isUnaligned
    let count = Int(operation.alignedCount)
    if count == 0 || command == .discard { return true }
    if command == .writeZeroes {
      if !isUnaligned { return true }
      operation.buffer = buffers.take(2 * parameters.sectorSize)
      operation.buffer?.clear(2 * parameters.sectorSize)
      return operation.buffer != nil
    }
    let pages = (count + Page.size - 1) >> Page.shift
    if parameters.copy == .direct, command == .read || !(isUnaligned || parameters.keepsWrites),
      pages * 3 <= pool.bound * 2, !isDead
    {
      // What is copied needs a page that is there, not one that the domain's limit refuses.
      if operationPages + pages <= share, let list = pool.take(pages, leaving: copyPages > 0 ? 0 : 1) {
        operation.pages = list
        operation.cursor = list.first
        operation.shownPage = list.first
        operationPages += pages
        pagesHeldByCallers += pages
        pagesWanted = 0
        return true
      }
      // Worth waiting for, if the backend has them or is about to; not if it has them of other queues, of which our caller
      // does not know.
      let comeBack = inFlight.count > 0 || !pending.isEmpty && !isHolding
      if comeBack, relays.guests.isEmpty, pagesHeldByCallers + pages <= share {
        counters.waitsForPages &+= 1
        pagesWanted = pages
        return false
      }
    }
    operation.buffer = buffers.take(count)
    return operation.buffer != nil
  }

  mutating func submit(_ id: OperationID) {
    guard let slot = find(id, .begun) else { return }
    pagesHeldByCallers -= Int(operations[slot].pages.count)
    unfinished += 1
    count(slot)
    if operations[slot].status == .okay, broken != nil { operations[slot].status = .ioError }
    if operations[slot].status == .okay, let refusal { operations[slot].status = refusal }
    guard operations[slot].status == .okay,
      operations[slot].byteCount > 0 || operations[slot].command == .flush
    else { return finish(slot) }
    if operations[slot].command == .write { clearTail(slot) }
    if parked.isEmpty || !operations[slot].needsGate, enterGate(slot) {
      enqueue(slot)
    } else {
      // Behind those that wait already, or they might wait for ever.
      counters.waitsForSectors &+= 1
      operations[slot].state = .parked
      if parked.isEmpty { gate.setWaiting(true, queue: index) }
      parked.append(slot, &operations)
      // What it waits for may have gone before anybody could see that it waits.
      hasWork = true
    }
  }

  mutating func cancel(_ id: OperationID) {
    guard let slot = find(id, .begun) else { return }
    pagesHeldByCallers -= Int(operations[slot].pages.count)
    free(slot)
  }

  mutating func release(_ id: OperationID) {
    guard let slot = find(id, .done) else { return }
    pagesHeldByCallers -= Int(operations[slot].pages.count)
    free(slot)
  }

  /// Takes one operation that ended, for its caller to be told.
  mutating func nextCompletion() -> Completion? {
    let slot = completed.first
    guard slot >= 0 else { return nil }
    completed.removeFirst(&operations)
    let operation = operations[slot]
    return Completion(
      operation: OperationID(index: slot, generation: operation.generation), tag: operation.tag,
      status: operation.status)
  }

  /// An operation has ended, well or badly: lets go of what it needs no more and queues it to be reported.
  mutating func finish(_ slot: Int32) {
    if operations[slot].isGuest { return sendHome(slot) }
    leaveGate(slot)
    unfinished -= 1
    if operations[slot].status != .okay { counters.failures &+= 1 }
    if operations[slot].command != .read || operations[slot].status != .okay { freeMemory(slot) }
    pagesHeldByCallers += Int(operations[slot].pages.count)
    operations[slot].state = .done
    completed.append(slot, &operations)
    hasWork = true
  }

  @inline(__always)
  mutating func free(_ slot: Int32) {
    freeMemory(slot)
    operations[slot].state = .free
    operations[slot].next = freeOperation
    freeOperation = slot
    // These pages may be what a pending operation waits for.
    if !pending.isEmpty || !relays.waiting.isEmpty { hasWork = true }
  }

  private mutating func freeMemory(_ slot: Int32) {
    operationPages -= Int(operations[slot].pages.count)
    if !isDead { pool.put(operations[slot].pages) }
    operations[slot].pages = PageList()
    if let buffer = operations[slot].buffer {
      buffers.put(buffer)
      operations[slot].buffer = nil
    }
  }

  private func find(_ id: OperationID, _ state: OperationRecord.State) -> Int32? {
    guard id.index < Self.operationCapacity, operations[id.index].generation == id.generation,
      operations[id.index].state == state
    else { return nil }
    return Int32(id.index)
  }

  @inline(__always)
  private mutating func count(_ slot: Int32) {
    switch operations[slot].command {
    case .read:
      counters.reads &+= 1
      counters.bytesRead &+= operations[slot].byteCount
    case .write:
      counters.writes &+= 1
      counters.bytesWritten &+= operations[slot].byteCount
    case .flush: counters.flushes &+= 1
    case .discard: counters.discards &+= 1
    case .writeZeroes: counters.writeZeroes &+= 1
    }
    if operations[slot].isUnaligned { counters.unalignedOperations &+= 1 }
    if operations[slot].pages.count > 0 {
      counters.directOperations &+= 1
    } else if operations[slot].buffer != nil {
      counters.bouncedOperations &+= 1
    }
  }

  /// The pages that operations may hold.
  var share: Int { pool.bound * 3 / 4 }

  /// What an operation may put into the ring before its turn is over.
  var turnBytes: UInt64 { sharesThread ? Self.shortTurn : Self.fairTurn }

  /// Nothing is under way that the device would have to wait for before it closes.
  var isQuiet: Bool { isHolding ? inFlight.count == 0 : unfinished == 0 }

  // MARK: Lists

  /// Puts an operation behind those that have something to put into the ring.
  @inline(__always)
  mutating func enqueue(_ slot: Int32) {
    operations[slot].state = .queued
    pending.append(slot, &operations)
    hasWork = true
  }
}
