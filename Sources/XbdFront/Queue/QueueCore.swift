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
internal import Glibc
internal import Platform
internal import Xen

struct QueueCore: ~Copyable {
  /// Operations that callers may have begun at once.
  static let operationCapacity = 1024
  /// The largest read or write, in bytes.
  static let maxByteCount: UInt64 = 64 << 20
  /// Bytes that an operation may put into the ring before others get their turn.
  static let turnBytes: UInt64 = 1 << 20

  let index: Int
  var parameters: QueueParameters
  var ring: FrontRing
  var pool: GrantPool
  var buffers = BufferCache()
  var inFlight: InFlightTable
  let operations: UnsafeMutablePointer<OperationRecord>
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
  /// Granted pages of operations, from `begin` to the end of their use.
  var operationPages = 0
  /// Those of them in operations that wait for their caller, not for the backend.
  var pagesHeldByCallers = 0
  /// Granted pages in flight for copies and zeroes.
  var copyPages = 0
  /// Set while a caller was sent away for want of pages: copies then keep to their quarter of the pool.
  var callersWantPages = false
  /// Set when something came up that the next turn of `poll` can move forward.
  var hasWork = false
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
    operations = .allocate(capacity: Self.operationCapacity)
    operations.initialize(repeating: OperationRecord(), count: Self.operationCapacity)
    for slot in 0..<Self.operationCapacity {
      operations[slot].next = slot + 1 < Self.operationCapacity ? Int32(slot + 1) : -1
    }
  }

  deinit {
    for slot in 0..<Self.operationCapacity {
      if let buffer = operations[slot].buffer { Glibc.free(buffer) }
    }
    operations.deallocate()
  }

  // MARK: Beginning and ending

  mutating func begin(_ request: BlockRequest, tag: UInt64) -> OperationID? {
    let slot = freeOperation
    guard slot >= 0 else {
      counters.waitsForOperations &+= 1
      return nil
    }
    let operation = operations + Int(slot)
    let nextFree = operation.pointee.next
    let generation = operation.pointee.generation &+ 1
    operation.pointee = OperationRecord()
    operation.pointee.generation = generation
    operation.pointee.next = nextFree
    operation.pointee.command = request.command
    operation.pointee.forceUnitAccess = request.forceUnitAccess
    operation.pointee.isSecure = request.isSecure
    operation.pointee.tag = tag
    operation.pointee.status = check(request)
    if operation.pointee.status == .okay, request.command != .flush {
      let mask = UInt64(parameters.sectorSize - 1)
      let start = request.byteOffset & ~mask
      operation.pointee.byteOffset = request.byteOffset
      operation.pointee.byteCount = request.byteCount
      operation.pointee.alignedOffset = start
      operation.pointee.alignedCount = ((request.byteOffset + request.byteCount + mask) & ~mask) - start
      operation.pointee.isUnaligned = (request.byteOffset | request.byteCount) & mask != 0
      guard giveMemory(operation) else { return nil }
    } else if request.command == .write, request.byteCount > 0, request.byteCount <= Self.maxByteCount {
      // It will fail, but its payload is on its way and has to go somewhere.
      operation.pointee.byteCount = request.byteCount
      guard giveBuffer(operation, Int(request.byteCount), cleared: false) else { return nil }
    }
    operation.pointee.state = .begun
    operation.pointee.next = -1
    freeOperation = nextFree
    return OperationID(index: slot, generation: generation)
  }

  /// What is wrong with a request before anything is done for it.
  private func check(_ request: BlockRequest) -> OperationStatus {
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
  private mutating func giveMemory(_ operation: UnsafeMutablePointer<OperationRecord>) -> Bool {
    let command = operation.pointee.command
    let isUnaligned = operation.pointee.isUnaligned
    let count = Int(operation.pointee.alignedCount)
    if count == 0 || command == .discard { return true }
    if command == .writeZeroes {
      return !isUnaligned || giveBuffer(operation, 2 * parameters.sectorSize, cleared: true)
    }
    let pages = (count + Page.size - 1) >> Page.shift
    if parameters.copy == .direct, command == .read || !(isUnaligned || parameters.keepsWrites),
      pages * 3 <= pool.bound * 2, !isDead
    {
      let share = pool.bound * 3 / 4
      if operationPages + pages <= share, let list = pool.take(pages) {
        operation.pointee.pages = list
        operation.pointee.cursor = list.first
        operationPages += pages
        pagesHeldByCallers += pages
        callersWantPages = false
        return true
      }
      // Worth waiting for, if the backend has them.
      if inFlight.count > 0, pagesHeldByCallers + pages <= share {
        counters.waitsForPages &+= 1
        callersWantPages = true
        return false
      }
    }
    return giveBuffer(operation, count, cleared: false)
  }

  mutating func giveBuffer(
    _ operation: UnsafeMutablePointer<OperationRecord>, _ size: Int, cleared: Bool
  ) -> Bool {
    guard let buffer = buffers.take(size) else { return false }
    if cleared { buffer.initializeMemory(as: UInt8.self, repeating: 0, count: size) }
    operation.pointee.buffer = buffer
    operation.pointee.bufferSize = size
    return true
  }

  mutating func submit(_ id: OperationID) {
    guard let slot = find(id, .begun) else { return }
    let operation = operations + Int(slot)
    pagesHeldByCallers -= Int(operation.pointee.pages.count)
    unfinished += 1
    count(operation)
    if operation.pointee.status == .okay, broken != nil { operation.pointee.status = .ioError }
    if operation.pointee.status == .okay, let refusal { operation.pointee.status = refusal }
    guard operation.pointee.status == .okay,
      operation.pointee.byteCount > 0 || operation.pointee.command == .flush
    else { return finish(slot) }
    if operation.pointee.command == .write { clearTail(operation) }
    if parked.isEmpty || !operation.pointee.needsGate, enterGate(slot) {
      enqueue(slot)
    } else {
      // Behind those that wait already, or they might wait for ever.
      counters.waitsForSectors &+= 1
      operation.pointee.state = .parked
      parked.append(slot, operations)
    }
  }

  mutating func cancel(_ id: OperationID) {
    guard let slot = find(id, .begun) else { return }
    pagesHeldByCallers -= Int(operations[Int(slot)].pages.count)
    free(slot)
  }

  mutating func release(_ id: OperationID) {
    guard let slot = find(id, .done) else { return }
    pagesHeldByCallers -= Int(operations[Int(slot)].pages.count)
    free(slot)
  }

  /// Takes one operation that ended, for its caller to be told.
  mutating func nextCompletion() -> Completion? {
    let slot = completed.first
    guard slot >= 0 else { return nil }
    completed.removeFirst(operations)
    let operation = operations[Int(slot)]
    return Completion(
      operation: OperationID(index: slot, generation: operation.generation), tag: operation.tag,
      status: operation.status)
  }

  /// An operation has ended, well or badly: lets go of what it needs no more and queues it to be reported.
  mutating func finish(_ slot: Int32) {
    let operation = operations + Int(slot)
    if operation.pointee.isGuest { return sendHome(slot) }
    leaveGate(slot)
    unfinished -= 1
    if operation.pointee.status != .okay { counters.failures &+= 1 }
    if operation.pointee.command != .read || operation.pointee.status != .okay { freeMemory(operation) }
    pagesHeldByCallers += Int(operation.pointee.pages.count)
    operation.pointee.state = .done
    completed.append(slot, operations)
    hasWork = true
  }

  mutating func free(_ slot: Int32) {
    let operation = operations + Int(slot)
    freeMemory(operation)
    operation.pointee.state = .free
    operation.pointee.next = freeOperation
    freeOperation = slot
    // These pages may be what a pending operation waits for.
    if !pending.isEmpty || !relays.waiting.isEmpty { hasWork = true }
  }

  private mutating func freeMemory(_ operation: UnsafeMutablePointer<OperationRecord>) {
    operationPages -= Int(operation.pointee.pages.count)
    if !isDead { pool.put(operation.pointee.pages) }
    operation.pointee.pages = PageList()
    if let buffer = operation.pointee.buffer {
      buffers.put(buffer, operation.pointee.bufferSize)
      operation.pointee.buffer = nil
    }
  }

  private func find(_ id: OperationID, _ state: OperationRecord.State) -> Int32? {
    guard id.index < Self.operationCapacity, operations[id.index].generation == id.generation,
      operations[id.index].state == state
    else { return nil }
    return Int32(id.index)
  }

  private mutating func count(_ operation: UnsafeMutablePointer<OperationRecord>) {
    switch operation.pointee.command {
    case .read:
      counters.reads &+= 1
      counters.bytesRead &+= operation.pointee.byteCount
    case .write:
      counters.writes &+= 1
      counters.bytesWritten &+= operation.pointee.byteCount
    case .flush: counters.flushes &+= 1
    case .discard: counters.discards &+= 1
    case .writeZeroes: counters.writeZeroes &+= 1
    }
    if operation.pointee.isUnaligned { counters.unalignedOperations &+= 1 }
    if operation.pointee.pages.count > 0 {
      counters.directOperations &+= 1
    } else if operation.pointee.buffer != nil {
      counters.bouncedOperations &+= 1
    }
  }

  /// Nothing is under way that the device would have to wait for before it closes.
  var isQuiet: Bool { isHolding ? inFlight.count == 0 : unfinished == 0 }

  // MARK: Lists

  /// Puts an operation behind those that have something to put into the ring.
  mutating func enqueue(_ slot: Int32) {
    operations[Int(slot)].state = .queued
    pending.append(slot, operations)
    hasWork = true
  }
}
