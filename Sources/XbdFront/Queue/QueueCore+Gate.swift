// SPDX-License-Identifier: Apache-2.0
//
// Where the write gate meets the queue: which operations pass it, and which wait.

internal import Platform

extension QueueCore {
  /// Lets an operation past the device's write gate.
  ///
  /// - Returns: false when it has to wait.
  mutating func enterGate(_ slot: Int32) -> Bool {
    switch operations[slot].command {
    case .read, .flush:
      return true
    case .write, .writeZeroes, .discard:
      if operations[slot].isUnaligned, operations[slot].command != .discard {
        // Behind one that was given up the gate is ours and shut: who came in now would open it at its end.
        guard !keepsGateShut, alone < 0 || alone == slot else { return false }
        // From here on others hold back, even if those in flight have to end first.
        alone = slot
        guard gate.enterAlone(queue: index) else { return false }
        operations[slot].step = .edges
      } else {
        guard alone < 0, gate.enter() else { return false }
      }
      operations[slot].holdsGate = true
      return true
    }
  }

  mutating func leaveGate(_ slot: Int32) {
    if alone == slot {
      alone = -1
      gate.leaveAlone(queue: index)
    } else if operations[slot].holdsGate {
      gate.leave()
    }
    operations[slot].holdsGate = false
  }

  /// Keeps the gate shut behind an unaligned write that is given up, if the backend may still write its sectors.
  ///
  /// It would do so with what had been read of them before, and undo whoever writes there meanwhile. The gate opens with
  /// the next ring (`resume`), for which that backend has let go of the last one, or never.
  ///
  /// - Parameter isAtBackend: whether it is, though not in our own ring.
  mutating func keepGateShut(_ slot: Int32, isAtBackend: Bool) {
    guard alone == slot, operations[slot].holdsGate, isAtBackend || mayStillBeWritten(slot) else { return }
    alone = -1
    operations[slot].holdsGate = false
    keepsGateShut = true
  }

  /// Whether an operation is in our ring with its payload.
  func mayStillBeWritten(_ slot: Int32) -> Bool {
    operations[slot].step == .main && operations[slot].outstanding > 0
  }

  /// Opens it again.
  mutating func openGate() {
    guard keepsGateShut else { return }
    keepsGateShut = false
    gate.leaveAlone(queue: index)
  }

  /// Tries the operations that wait at the gate again, in their order.
  ///
  /// What holds the first one back holds back those behind it too: nobody overtakes, nobody starves.
  mutating func retryParked() {
    while !parked.isEmpty {
      let slot = parked.first
      guard enterGate(slot) else { return }
      parked.removeFirst(&operations)
      if parked.isEmpty { gate.setWaiting(false, queue: index) }
      enqueue(slot)
    }
  }
}
