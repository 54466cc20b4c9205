// SPDX-License-Identifier: Apache-2.0
//
// When the next backend serves fewer queues than the last: a queue that gets no ring sends its operations to another
// queue, whose owner puts them into its ring beside its own. The memory goes with them, and comes back with the
// answer, so that neither side touches what the other may have given up.

internal import Blkif
internal import Platform

/// Through whom a queue without a ring works.
struct Relay: Sendable {
  let host: QueueControl
  /// What was negotiated.
  let parameters: QueueParameters
}

/// An operation on its way to another queue.
struct RelayedOperation: @unchecked Sendable {
  // SAFETY: the buffer belongs to whoever has the value.
  let origin: QueueControl
  let slot: Int32
  let generation: UInt32
  let record: OperationRecord
  var buffer: UnsafeMutableRawPointer?
}

/// What became of it.
struct RelayAnswer: @unchecked Sendable {
  // SAFETY: the buffer belongs to whoever has the value.
  let slot: Int32
  let generation: UInt32
  let status: OperationStatus
  let buffer: UnsafeMutableRawPointer?
  let bufferSize: Int
}

/// What a queue keeps of others' operations; empty unless a backend came back with fewer queues.
struct RelayState {
  /// Where our own go, while we have no ring.
  var target: Relay?
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
    recheckAll()
    hasWork = true
  }

  /// Sends away what is pending.
  mutating func relayPending(_ control: QueueControl) {
    guard let target = relays.target, !isHolding else { return }
    while !pending.isEmpty {
      let slot = pending.first
      pending.removeFirst(operations)
      let operation = operations + Int(slot)
      guard operation.pointee.status == .okay else {
        finish(slot)
        continue
      }
      operation.pointee.state = .active
      operation.pointee.isAway = true
      let message = RelayedOperation(
        origin: control, slot: slot, generation: operation.pointee.generation, record: operation.pointee,
        buffer: operation.pointee.buffer)
      operation.pointee.buffer = nil
      target.host.tell { $0.relayed.append(message) }
    }
  }

  /// One of ours has come home.
  mutating func takeAnswer(_ answer: RelayAnswer) {
    let operation = operations + Int(answer.slot)
    guard operation.pointee.generation == answer.generation, operation.pointee.isAway else {
      // It was given up meanwhile.
      if let buffer = answer.buffer { buffers.put(buffer, answer.bufferSize) }
      return
    }
    operation.pointee.isAway = false
    operation.pointee.buffer = answer.buffer
    operation.pointee.status = answer.status
    finish(answer.slot)
  }

  // MARK: The queue with one

  /// Takes others' operations into the table, as far as there is room.
  mutating func admitGuests() {
    while let guest = relays.waiting.first, freeOperation >= 0 {
      relays.waiting.removeFirst()
      let slot = freeOperation
      let operation = operations + Int(slot)
      freeOperation = operation.pointee.next
      let generation = operation.pointee.generation &+ 1
      operation.pointee = guest.record
      operation.pointee.generation = generation
      operation.pointee.buffer = guest.buffer
      operation.pointee.isGuest = true
      operation.pointee.isAway = false
      // Its own queue holds the gate for it.
      operation.pointee.holdsGate = false
      if operation.pointee.status == .okay, let refusal { operation.pointee.status = refusal }
      relays.guests[slot] = guest
      unfinished += 1
      rewind(slot)
      enqueue(slot)
      if isGivenUp { giveUpGuests() }
    }
  }

  /// A guest has ended: its memory and its status go home.
  mutating func sendHome(_ slot: Int32) {
    let operation = operations + Int(slot)
    unfinished -= 1
    if let guest = relays.guests.removeValue(forKey: slot) {
      relays.answers.append(
        (
          guest.origin,
          RelayAnswer(
            slot: guest.slot, generation: guest.generation, status: operation.pointee.status,
            buffer: operation.pointee.buffer, bufferSize: operation.pointee.bufferSize)
        ))
      operation.pointee.buffer = nil
    }
    operation.pointee.isGuest = false
    free(slot)
    hasWork = true
  }

  /// A queue that was given up has nothing pending.
  private mutating func giveUpGuests() {
    while !pending.isEmpty {
      let slot = pending.first
      pending.removeFirst(operations)
      operations[Int(slot)].status = refusal ?? .shutdown
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
