// SPDX-License-Identifier: Apache-2.0
//
// From the socket: one receive brings many small requests into the connection's buffer, or a large payload straight
// into the target's memory with the next request's header behind it.

internal import CXen
internal import Glibc
internal import Platform

extension WorkerLoop {
  /// Gives a connection its turn: what is buffered already, or one receive and what it brought.
  @inline(__always)
  func serve(_ index: Int32) {
    let connection = connections[index]
    connection.pointee.isQueued = false
    guard connection.pointee.descriptor >= 0 else { return }
    state.pointee.hotConnection = index
    if connection.pointee.hasUnparsed {
      guard advance(index) else { return }
      if connection.pointee.isReadable { enqueue(index) }
      return
    }
    guard connection.pointee.isReadable, !connection.pointee.inputEnded else { return }
    guard receive(index) else { return }
    guard advance(index) else { return }
    if connection.pointee.isReadable { enqueue(index) }
  }

  /// Parses what is buffered, and sees to it that the connection gets its next turn when it stopped early.
  ///
  /// - Returns: whether everything buffered was looked at, so that more may be received.
  private func advance(_ index: Int32) -> Bool {
    let connection = connections[index]
    connection.pointee.hasUnparsed = false
    switch parse(index) {
    case .needsMore:
      return true
    case .endOfTurn:
      connection.pointee.hasUnparsed = true
      enqueue(index)
    case .blockedOnOwnLimit:
      connection.pointee.hasUnparsed = true
      connection.pointee.blocked = .ownLimit
    case .blockedOnResources:
      connection.pointee.hasUnparsed = true
      waitForResources(index)
    case .ended:
      closeIfDone(index)
    }
    return false
  }

  /// Receives once.
  ///
  /// - Returns: whether bytes came. If not, the connection waits for an event, or has been closed.
  func receive(_ index: Int32) -> Bool {
    let connection = connections[index]
    let wanted: Int
    let received: Int
    if connection.pointee.payloadSlot >= 0 {
      (received, wanted) = receivePayload(connection)
    } else {
      connection.pointee.buffer.makeRoom()
      (received, wanted) = connection.pointee.buffer.receive(
        from: connection.pointee.descriptor,
        atMost: connection.pointee.quota.bytes(requests: state.pointee.requestsAtOnce))
    }
    guard received > 0 else { return endOfInput(index, received) }
    counters.add(.receives)
    connection.pointee.isReadable = received == wanted || connection.pointee.peerClosed
    // A handshake is to be over in time, however many bytes come.
    if connection.pointee.phase == .transmission { connection.pointee.lastProgress = state.pointee.now }
    return true
  }

  /// Receives into the target's memory, and into the buffer what comes behind.
  ///
  /// - Returns: what the call said, and how many bytes there was room for.
  private func receivePayload(_ connection: Entry<Connection>) -> (received: Int, wanted: Int) {
    let slot = table[connection.pointee.payloadSlot]
    let remaining = Int(slot.pointee.byteCount) - connection.pointee.payloadReceived
    transfer.pointee.clear()
    // Vectors beyond what the socket holds would only be made again for the next receive.
    let payload = transfer.pointee.append(
      TargetOperation(rawValue: slot.pointee.operation), of: target,
      from: connection.pointee.payloadReceived, limit: remaining, vectors: Self.receiveVectors)
    if payload == remaining {
      // The buffer is empty here: a payload is received directly only after what was buffered has been used.
      connection.pointee.buffer.makeRoom()
      transfer.pointee.append(
        roomOf: connection.pointee.buffer,
        atMost: connection.pointee.quota.bytes(requests: state.pointee.requestsAtOnce))
    }
    let wanted = transfer.pointee.byteCount
    let received = transfer.pointee.receive(from: connection.pointee.descriptor)
    let direct = min(max(received, 0), payload)
    connection.pointee.payloadReceived += direct
    if received > direct { connection.pointee.buffer.fill(received - direct) }
    return (received, wanted)
  }

  /// Nothing came: waits, or takes note that nothing will come any more.
  private func endOfInput(_ index: Int32, _ result: Int) -> Bool {
    let connection = connections[index]
    if result < 0 {
      let code = errno
      if code == EINTR {
        connection.pointee.isReadable = true
        enqueue(index)
        return false
      }
      if code == EAGAIN || code == EWOULDBLOCK {
        connection.pointee.isReadable = false
        return false
      }
      connection.pointee.outputBroken = true
    }
    connection.pointee.isReadable = false
    connection.pointee.inputEnded = true
    closeIfDone(index)
    return false
  }

  /// Closes a connection whose input has ended once its requests are answered.
  ///
  /// A payload that will never be complete is given up: the write changes nothing.
  func closeIfDone(_ index: Int32) {
    let connection = connections[index]
    guard connection.pointee.descriptor >= 0, connection.pointee.inputEnded else { return }
    if connection.pointee.phase == .handshake {
      if connection.pointee.outputBroken || !hasOutput(connection) { close(index) }
      return
    }
    // Whole requests that are buffered still count.
    if connection.pointee.blocked != .none || connection.pointee.hasUnparsed { return }
    let incomplete =
      (connection.pointee.payloadSlot >= 0 ? 1 : 0) + (connection.pointee.skipSlot >= 0 ? 1 : 0)
    if connection.pointee.inFlight == incomplete { close(index) }
  }
}
