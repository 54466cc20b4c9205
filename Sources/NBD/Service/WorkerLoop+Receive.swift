// SPDX-License-Identifier: Apache-2.0
//
// From the socket: one receive brings many small requests into the connection's buffer, or a large payload straight
// into the target's memory with the next request's header behind it.

internal import CXen
internal import Glibc

extension WorkerLoop {
  /// Gives a connection its turn: what is buffered, then one receive and what it brought.
  @inline(__always)
  func serve(_ index: Int32) {
    let connection = connections + Int(index)
    connection.pointee.isQueued = false
    guard connection.pointee.descriptor >= 0 else { return }
    state.pointee.hotConnection = index
    if connection.pointee.hasUnparsed {
      guard advance(index) else { return }
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
    let connection = connections + Int(index)
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
    let connection = connections + Int(index)
    let wanted: Int
    let received: Int
    var payload = 0
    if connection.pointee.payloadSlot >= 0 {
      (wanted, payload, received) = receivePayload(connection)
    } else {
      makeRoom(connection)
      wanted = min(Self.bufferSize - connection.pointee.end, connection.pointee.receiveLimit)
      received = Glibc.recv(
        connection.pointee.descriptor, connection.pointee.buffer + connection.pointee.end, wanted, 0)
    }
    guard received > 0 else { return endOfInput(index, received) }
    counters.add(.receives)
    if received < wanted && !connection.pointee.peerClosed { connection.pointee.isReadable = false }
    connection.pointee.lastProgress = state.pointee.now
    let direct = min(received, payload)
    connection.pointee.payloadReceived += direct
    connection.pointee.end += received - direct
    return true
  }

  /// Receives into the target's memory, and into the buffer what comes behind.
  private func receivePayload(_ connection: UnsafeMutablePointer<Connection>) -> (Int, Int, Int) {
    let slot = table.slots + Int(connection.pointee.payloadSlot)
    let remaining = Int(slot.pointee.byteCount) - connection.pointee.payloadReceived
    // Vectors beyond what the socket holds would only be made again for the next receive.
    let room = UnsafeMutableBufferPointer(rebasing: vectors[..<Self.receiveVectors])
    var count = target.vectors(
      of: TargetOperation(rawValue: slot.pointee.operation), from: connection.pointee.payloadReceived,
      into: room)
    let payload = trim(&count, to: remaining)
    var wanted = payload
    if payload == remaining {
      // The buffer is empty here: a payload is received directly only after what was buffered has been used.
      connection.pointee.start = 0
      connection.pointee.end = 0
      let trailing = min(Self.bufferSize, connection.pointee.receiveLimit)
      vectors[count] = iovec(iov_base: connection.pointee.buffer, iov_len: trailing)
      count += 1
      wanted += trailing
    }
    var message = msghdr()
    message.msg_iov = vectors.baseAddress
    message.msg_iovlen = count
    return (wanted, payload, Glibc.recvmsg(connection.pointee.descriptor, &message, 0))
  }

  /// Cuts the vectors just made to a number of bytes, whatever the target wrote.
  ///
  /// - Returns: how many bytes the vectors have now.
  @inline(__always)
  func trim(_ count: inout Int, from first: Int = 0, to limit: Int) -> Int {
    var total = 0
    var kept = first
    while kept < first + count && total < limit {
      let length = min(Int(vectors[kept].iov_len), limit - total)
      vectors[kept].iov_len = length
      total += length
      kept += 1
    }
    count = kept - first
    return total
  }

  /// Nothing came: waits, or takes note that nothing will come any more.
  private func endOfInput(_ index: Int32, _ result: Int) -> Bool {
    let connection = connections + Int(index)
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

  /// Moves what is left in the buffer to its front when the room behind it runs short.
  @inline(__always)
  private func makeRoom(_ connection: UnsafeMutablePointer<Connection>) {
    let start = connection.pointee.start
    let count = connection.pointee.end - start
    if count == 0 {
      connection.pointee.start = 0
      connection.pointee.end = 0
    } else if start > 0 && (count < 4096 || start > Self.bufferSize / 4) {
      memmove(connection.pointee.buffer, connection.pointee.buffer + start, count)
      connection.pointee.start = 0
      connection.pointee.end = count
    }
  }

  /// Closes a connection whose input has ended once its requests are answered.
  ///
  /// A payload that will never be complete is given up: the write changes nothing.
  func closeIfDone(_ index: Int32) {
    let connection = connections + Int(index)
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
