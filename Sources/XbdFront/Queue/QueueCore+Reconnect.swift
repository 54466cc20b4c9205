// SPDX-License-Identifier: Apache-2.0
//
// From one ring to another: what was asked of a backend that has gone is asked again of the next one.
//
// `suspend` lets go of the ring and of every granted page. An operation that used pages goes on in private memory;
// one that was not answered in full goes back to its beginning, to be cut into requests anew. `resume` takes the new
// ring. To the caller nothing has happened but time: each operation is still reported once.
//
// An operation that has not been reported may be carried out twice without anyone being able to tell, because
// reads, writes, discards and flushes are all the same when done again; that the old backend does nothing more after
// the new one has begun is the state machine's business (FrontendStateMachine+Recovery.swift).

internal import Blkif
internal import Glibc
internal import Platform

extension QueueCore {
  /// Lets go of everything that is shared with the backend, and keeps the operations.
  mutating func suspend() {
    isDead = true
    isGivenUp = false
    isHolding = false
    broken = nil
    refusal = nil
    relays.target = nil
    var flushes = OperationList()
    var again = OperationList()
    let waiting = pending
    for slot in 0..<Int32(Self.operationCapacity) {
      let operation = operations + Int(slot)
      if operation.pointee.state == .free { continue }
      saveFromPages(operation)
      guard operation.pointee.state == .active, !operation.pointee.isAway else { continue }
      counters.resubmissions &+= 1
      rewind(slot)
      // What a flush covers was answered before it was asked for; still it comes behind what is asked again.
      if operation.pointee.command == .flush {
        flushes.append(slot, operations)
      } else {
        again.append(slot, operations)
      }
    }
    pending = again
    var slot = waiting.first
    while slot >= 0 {
      let next = operations[Int(slot)].next
      if operations[Int(slot)].outstanding > 0 || operations[Int(slot)].issued > 0 {
        counters.resubmissions &+= 1
      }
      rewind(slot)
      pending.append(slot, operations)
      slot = next
    }
    slot = flushes.first
    while slot >= 0 {
      let next = operations[Int(slot)].next
      pending.append(slot, operations)
      slot = next
    }
    counters.grantsMade &+= pool.grantsMade
    counters.grantsReused &+= pool.grantsReused
    counters.grantsEnded &+= pool.grantsEnded &+ UInt64(pool.sharedPages)
    // The pages go with the pool: nothing that is left points into it.
    pool = pool.emptied()
    inFlight = InFlightTable(capacity: 0)
    operationPages = 0
    pagesHeldByCallers = 0
    copyPages = 0
    callersWantPages = false
  }

  /// Goes on with another ring.
  ///
  /// - Parameter new: what was negotiated with it.
  mutating func resume(
    parameters new: QueueParameters, ring: consuming FrontRing, pool: consuming GrantPool
  ) {
    inFlight = InFlightTable(capacity: Int(ring.capacity))
    self.ring = ring
    self.pool = pool
    parameters = new
    isDead = false
    isHolding = false
    relays.target = nil
    counters.reconnections &+= 1
    recheckAll()
    hasWork = true
  }

  /// Fails what the new device cannot do.
  mutating func recheckAll() {
    for slot in 0..<Self.operationCapacity {
      let operation = operations + slot
      switch operation.pointee.state {
      case .free, .done, .active: break
      case .begun, .queued, .parked:
        // The new backend's device may be smaller, or not be written.
        if operation.pointee.status == .okay { operation.pointee.status = recheck(operation) }
      }
    }
  }

  private func recheck(_ operation: UnsafeMutablePointer<OperationRecord>) -> OperationStatus {
    let command = operation.pointee.command
    if command == .flush { return .okay }
    guard operation.pointee.alignedOffset + operation.pointee.alignedCount <= parameters.sectorCount << 9
    else { return .ioError }
    return command != .read && parameters.isReadOnly ? .readOnly : .okay
  }

  /// Moves an operation's payload from granted pages to private memory.
  private mutating func saveFromPages(_ operation: UnsafeMutablePointer<OperationRecord>) {
    let pages = operation.pointee.pages
    guard pages.count > 0 else { return }
    let size = Int(operation.pointee.alignedCount)
    operation.pointee.pages = PageList()
    operation.pointee.cursor = -1
    guard giveBuffer(operation, size, cleared: false), let buffer = operation.pointee.buffer else {
      // One that was reported already has lost its data: whoever asks for it gets no vectors.
      operation.pointee.status = .ioError
      return
    }
    // A read that was not answered has nothing to be saved.
    if operation.pointee.command == .read, operation.pointee.state != .done { return }
    var page = pages.first
    for offset in stride(from: 0, to: size, by: Page.size) {
      memcpy(buffer + offset, pool.address(page), min(Page.size, size - offset))
      page = pool.next(page)
    }
    counters.bytesCopied &+= UInt64(size)
  }

  /// Takes an operation back to where nothing of it had been asked.
  mutating func rewind(_ slot: Int32) {
    let operation = operations + Int(slot)
    let readsEdges =
      operation.pointee.isUnaligned
      && (operation.pointee.command == .write || operation.pointee.command == .writeZeroes)
    // A durable write is written again, too: if the lost backend had it in a cache, that may be gone.
    operation.pointee.step = readsEdges ? .edges : .main
    operation.pointee.state = .queued
    operation.pointee.mustRestart = false
    operation.pointee.yields = false
    operation.pointee.outstanding = 0
    operation.pointee.issued = 0
    operation.pointee.turnEnd = Self.turnBytes
    operation.pointee.cursor = -1
  }
}
