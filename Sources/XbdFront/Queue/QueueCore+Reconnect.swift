// SPDX-License-Identifier: Apache-2.0
//
// From one ring to another: what was asked of a backend that has gone is asked again of the next one.
//
// `suspend` lets go of the ring and of every granted page. An operation that used pages goes on in private memory;
// one that was not answered in full goes back to its beginning, or to behind what is settled, to be cut into requests anew. `resume` takes the new
// ring. To the caller nothing has happened but time: each operation is still reported once.
//
// An operation that has not been reported may be carried out twice without anyone being able to tell, because
// reads, writes, discards and flushes are all the same when done again; that the old backend does nothing more after
// the new one has begun is the state machine's business (FrontendStateMachine+Recovery.swift).

internal import Blkif
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
      if operations[slot].state == .free { continue }
      let pages = operations[slot].pages
      saveFromPages(slot)
      // What the backend owes no answer for is handed back empty.
      if operations[slot].outstanding == 0 { pool.put(pages) }
      guard operations[slot].state == .active, !operations[slot].isAway else { continue }
      counters.resubmissions &+= 1
      rewind(slot)
      // What a flush covers was answered before it was asked for; still it comes behind what is asked again.
      if operations[slot].command == .flush {
        flushes.append(slot, &operations)
      } else {
        again.append(slot, &operations)
      }
    }
    pending = again
    var slot = waiting.first
    while slot >= 0 {
      let next = operations[slot].next
      if operations[slot].outstanding > 0 || operations[slot].issued > 0 {
        counters.resubmissions &+= 1
      }
      rewind(slot)
      pending.append(slot, &operations)
      slot = next
    }
    slot = flushes.first
    while slot >= 0 {
      let next = operations[slot].next
      pending.append(slot, &operations)
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
    pagesWanted = 0
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
    openGate()
    dropUnwantedGuests()
    recheckAll()
    hasWork = true
  }

  /// Fails what the new device cannot do.
  mutating func recheckAll() {
    for slot in 0..<Int32(Self.operationCapacity) {
      switch operations[slot].state {
      case .free, .done, .active: break
      case .begun, .queued, .parked:
        // The new backend's device may be smaller, or not be written.
        if operations[slot].status == .okay { operations[slot].status = recheck(slot) }
      }
    }
  }

  private func recheck(_ slot: Int32) -> OperationStatus {
    let command = operations[slot].command
    if command == .flush { return .okay }
    guard operations[slot].alignedOffset + operations[slot].alignedCount <= parameters.sectorCount << 9
    else { return .ioError }
    return command != .read && parameters.isReadOnly ? .readOnly : .okay
  }

  /// Moves an operation's payload from granted pages to private memory.
  mutating func saveFromPages(_ slot: Int32) {
    let pages = operations[slot].pages
    guard pages.count > 0 else { return }
    let size = Int(operations[slot].alignedCount)
    operations[slot].pages = PageList()
    operations[slot].cursor = -1
    guard let buffer = buffers.take(size) else {
      // One that was reported already has lost its data: whoever asks for it gets no vectors.
      operations[slot].status = .ioError
      return
    }
    operations[slot].buffer = buffer
    // A read of which nothing was answered has nothing to be saved.
    if operations[slot].command == .read, operations[slot].state != .done, operations[slot].issued == 0 {
      return
    }
    var page = pages.first
    for offset in stride(from: Int(operations[slot].settled), to: size, by: Page.size) {
      pool.memory(page).take(min(Page.size, size - offset), to: buffer, at: offset)
      page = pool.next(page)
    }
    counters.bytesCopied &+= UInt64(size) - operations[slot].settled
  }

  /// Takes an operation back to where nothing of it had been asked but what is settled.
  mutating func rewind(_ slot: Int32) {
    let readsEdges =
      operations[slot].isUnaligned
      && (operations[slot].command == .write || operations[slot].command == .writeZeroes)
    // A durable write is written again, too: if the lost backend had it in a cache, that may be gone.
    operations[slot].step = readsEdges ? .edges : .main
    operations[slot].state = .queued
    operations[slot].mustRestart = false
    operations[slot].yields = false
    operations[slot].outstanding = 0
    operations[slot].issued = readsEdges ? 0 : operations[slot].settled
    operations[slot].turnStart = operations[slot].issued
    operations[slot].cursor = -1
  }
}
