// SPDX-License-Identifier: Apache-2.0
//
// When the next backend serves fewer queues than the last: a queue that gets no ring sends its operations to another
// queue, whose owner puts them into its ring beside its own. The memory goes with them, and comes back with the
// answer, so that neither side touches what the other may have given up.

internal import Blkif
internal import Platform
internal import Synchronization

/// Through whom a queue without a ring works.
struct Relay: Sendable {
  let host: QueueControl
  /// What was negotiated.
  let parameters: QueueParameters
}

/// Whether an operation that is with another queue is still wanted: its own queue may have given it up.
final class RelayFate: Sendable {
  let isGivenUp = Atomic<Bool>(false)
}

/// An operation on its way to another queue.
struct RelayedOperation: @unchecked Sendable {
  // SAFETY: the buffer belongs to whoever has the value.
  let origin: QueueControl
  let slot: Int32
  let generation: UInt32
  let record: OperationRecord
  let fate: RelayFate
  var buffer: PrivateBuffer?
}

/// What became of it.
struct RelayAnswer: @unchecked Sendable {
  // SAFETY: the buffer belongs to whoever has the value.
  let slot: Int32
  let generation: UInt32
  let status: OperationStatus
  /// Given up while the backend had it.
  let mayStillBeWritten: Bool
  let buffer: PrivateBuffer?
}

/// What a queue keeps of others' operations; empty unless a backend came back with fewer queues.
struct RelayState {
  /// Where our own go, while we have no ring.
  var target: Relay?
  /// What becomes of those, by their place.
  var away: [Int32: RelayFate] = [:]
  /// Others' that wait for a place in the table.
  var waiting: [RelayedOperation] = []
  /// Others' that are in the table, by their place.
  var guests: [Int32: RelayedOperation] = [:]
  /// To be sent home.
  var answers: [(QueueControl, RelayAnswer)] = []
}

extension QueueCore {
  // MARK: The queue without a ring

  /// Goes on through another queue.
  mutating func resume(through relay: Relay) {
    relays.target = relay
    parameters = relay.parameters
    isHolding = false
    counters.reconnections &+= 1
    openGate()
    recheckAll()
    hasWork = true
  }

  /// Sends away what is pending.
  mutating func relayPending(_ control: QueueControl) {
    guard let target = relays.target, !isHolding else { return }
    while !pending.isEmpty {
      let slot = pending.first
      pending.removeFirst(&operations)
      guard operations[slot].status == .okay else {
        finish(slot)
        continue
      }
      operations[slot].state = .active
      operations[slot].isAway = true
      let fate = RelayFate()
      relays.away[slot] = fate
      let message = RelayedOperation(
        origin: control, slot: slot, generation: operations[slot].generation, record: operations[slot],
        fate: fate, buffer: operations[slot].buffer)
      operations[slot].buffer = nil
      target.host.tell { $0.relayed.append(message) }
    }
  }

  /// One of ours has come home.
  mutating func takeAnswer(_ answer: RelayAnswer) {
    let slot = answer.slot
    guard operations[slot].generation == answer.generation, operations[slot].isAway else {
      // It was given up meanwhile.
      if let buffer = answer.buffer { buffers.put(buffer) }
      return
    }
    operations[slot].isAway = false
    relays.away[slot] = nil
    operations[slot].buffer = answer.buffer
    operations[slot].status = answer.status
    if answer.mayStillBeWritten { keepGateShut(slot, isAtBackend: true) }
    finish(slot)
  }

  /// An operation of ours that is away has been ended: it is not to be done any more.
  mutating func giveUpAway(_ slot: Int32) {
    operations[slot].isAway = false
    // The next ring comes only after every queue has let go of the last.
    relays.away.removeValue(forKey: slot)?.isGivenUp.store(true, ordering: .releasing)
  }

  // MARK: The queue with one

  /// Has guests that were given up end without being asked of anybody.
  mutating func dropUnwantedGuests() {
    for (slot, guest) in relays.guests where guest.fate.isGivenUp.load(ordering: .acquiring) {
      operations[slot].status = .ioError
    }
  }

  /// Takes others' operations into the table, as far as there is room; half of it is our own callers'.
  mutating func admitGuests() {
    while let guest = relays.waiting.first, freeOperation >= 0,
      relays.guests.count < Self.operationCapacity / 2
    {
      relays.waiting.removeFirst()
      let slot = freeOperation
      freeOperation = operations[slot].next
      let generation = operations[slot].generation &+ 1
      operations[slot] = guest.record
      operations[slot].generation = generation
      operations[slot].buffer = guest.buffer
      operations[slot].isGuest = true
      operations[slot].isAway = false
      // Its own queue holds the gate for it.
      operations[slot].holdsGate = false
      if guest.fate.isGivenUp.load(ordering: .acquiring) { operations[slot].status = .ioError }
      relays.guests[slot] = guest
      unfinished += 1
      rewind(slot)
      enqueue(slot)
      if isGivenUp { giveUpGuests() }
    }
  }

  /// A guest has ended: its memory and its status go home.
  mutating func sendHome(_ slot: Int32) {
    unfinished -= 1
    if let guest = relays.guests.removeValue(forKey: slot) {
      relays.answers.append(
        (
          guest.origin,
          RelayAnswer(
            slot: guest.slot, generation: guest.generation, status: operations[slot].status,
            mayStillBeWritten: mayStillBeWritten(slot), buffer: operations[slot].buffer)
        ))
      operations[slot].buffer = nil
    }
    operations[slot].isGuest = false
    free(slot)
    hasWork = true
  }

  /// A queue that was given up has nothing pending.
  private mutating func giveUpGuests() {
    while !pending.isEmpty {
      let slot = pending.first
      pending.removeFirst(&operations)
      operations[slot].status = refusal ?? .shutdown
      finish(slot)
    }
  }

  /// Sends answers to those who wait for them.
  mutating func deliverAnswers() {
    let answers = relays.answers
    relays.answers = []
    for (origin, answer) in answers { origin.tell { $0.answers.append(answer) } }
  }
}
