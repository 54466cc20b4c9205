// SPDX-License-Identifier: Apache-2.0
//
// From completions to the socket: the replies of a turn leave in one sendmsg, headers from a scratch buffer and data
// from the target's memory. What a socket did not take is encoded again the next time, so that nothing is kept
// but a count of bytes.

internal import CXen
internal import Glibc
internal import Platform

extension WorkerLoop {
  /// Data bytes offered to a socket at a time: a few times what its buffer takes.
  private static let sendBytes = 1 << 20

  /// Takes a completion from the target.
  func complete(_ tag: UInt64, _ operation: TargetOperation, _ status: TargetStatus) {
    let index = table.index(of: tag)
    guard index >= 0 else { return }
    let slot = table[index]
    guard slot.pointee.state == .running else { return }
    slot.pointee.error = status.wireError
    let isGone = slot.pointee.connection < 0
    if isGone || slot.pointee.reply != .data || slot.pointee.error != NBDError.none {
      // Nothing is sent from this memory: it is wanted elsewhere.
      slot.pointee.holdsOperation = false
      slot.pointee.reply = .status
      target.release(operation)
      state.pointee.heldOperations -= 1
      state.pointee.somethingReleased = true
    }
    if isGone {
      if slot.pointee.connection == Self.finalFlush { state.pointee.finalFlush = status }
      table.giveBack(index)
    } else {
      queueReply(index)
    }
  }

  /// Puts a request into its connection's list of replies.
  @inline(__always)
  func queueReply(_ index: Int32) {
    let slot = table[index]
    let owner = slot.pointee.connection
    let connection = connections[owner]
    slot.pointee.state = .answered
    slot.pointee.next = -1
    if connection.pointee.replyTail >= 0 {
      table[connection.pointee.replyTail].pointee.next = index
    } else {
      connection.pointee.replyHead = index
      connection.pointee.lastProgress = state.pointee.now
    }
    connection.pointee.replyTail = index
    connection.pointee.unsentBytes += slot.pointee.dataLength
    if slot.pointee.error != NBDError.none { counters.add(.errorReplies) }
    enqueueFlush(owner)
  }

  @inline(__always)
  func hasOutput(_ connection: Entry<Connection>) -> Bool {
    connection.pointee.replyHead >= 0
      || connection.pointee.handshakeSent < connection.pointee.handshakeOutput.count
  }

  /// Sends what a connection has, once.
  func flush(_ index: Int32) {
    let connection = connections[index]
    connection.pointee.isFlushQueued = false
    guard connection.pointee.descriptor >= 0 else { return }
    if connection.pointee.outputBroken {
      dropOutput(index)
    } else {
      guard !connection.pointee.isSendBlocked else { return }
      if !connection.pointee.handshakeOutput.isEmpty, !flushHandshake(index) { return }
      if connection.pointee.replyHead >= 0 {
        guard flushReplies(index) else { return }
        if connection.pointee.replyHead >= 0 && !connection.pointee.isSendBlocked { enqueueFlush(index) }
      }
    }
    // Replies that left are what a connection at its own limit waits for.
    if connection.pointee.blocked == .ownLimit {
      connection.pointee.blocked = .none
      enqueue(index)
    }
    if connection.pointee.closesWhenSent {
      if !hasOutput(connection) { close(index) }
    } else if connection.pointee.inputEnded && connection.pointee.replyHead < 0 {
      if connection.pointee.hasUnparsed { enqueue(index) } else { closeIfDone(index) }
    }
  }

  /// Sends the replies from the front of the list.
  ///
  /// - Returns: false when the connection is to be left alone until the next turn.
  private func flushReplies(_ index: Int32) -> Bool {
    let connection = connections[index]
    gather(connection)
    let offered = transfer.pointee.byteCount
    guard offered > 0 else {
      // The data of a reply that has begun is gone: nothing that the client would understand can follow.
      close(index)
      return false
    }
    let sent = transfer.pointee.send(to: connection.pointee.descriptor)
    if sent < 0 { return sendFailed(index) }
    counters.add(.sends)
    connection.pointee.lastProgress = state.pointee.now
    retire(connection, sent)
    if sent < offered { waitForRoom(index) }
    return connection.pointee.descriptor >= 0
  }

  /// Lists the memory of as many replies as one call takes.
  private func gather(_ connection: Entry<Connection>) {
    let style = connection.pointee.style
    var skip = connection.pointee.replySent
    var index = connection.pointee.replyHead
    transfer.pointee.clear()
    while index >= 0, transfer.pointee.hasRoomForReply, transfer.pointee.byteCount < Self.sendBytes {
      let slot = table[index]
      let length = transfer.pointee.appendHeader(of: slot, style: style, skipping: skip)
      skip = max(skip - length, 0)
      let dataLength = slot.pointee.dataLength
      if dataLength > 0 {
        let wanted = dataLength - skip
        let bytes = transfer.pointee.append(
          TargetOperation(rawValue: slot.pointee.operation), of: target, from: skip, limit: wanted)
        if bytes < wanted { break }
      }
      skip = 0
      index = slot.pointee.next
    }
  }

  /// Takes note of bytes that left, and lets go of the requests whose replies are complete.
  private func retire(_ connection: Entry<Connection>, _ sent: Int) {
    var left = connection.pointee.replySent + sent
    while connection.pointee.replyHead >= 0 {
      let slot = table[connection.pointee.replyHead]
      let length =
        slot.pointee.headerLength(style: connection.pointee.style) + slot.pointee.dataLength
      guard left >= length else { break }
      left -= length
      counters.add(.replies)
      dropFirstReply(connection)
    }
    connection.pointee.replySent = left
  }

  /// Takes the first reply off the list and lets go of its request.
  @inline(__always)
  private func dropFirstReply(_ connection: Entry<Connection>) {
    let index = connection.pointee.replyHead
    let slot = table[index]
    connection.pointee.replyHead = slot.pointee.next
    if slot.pointee.next < 0 { connection.pointee.replyTail = -1 }
    connection.pointee.unsentBytes -= slot.pointee.dataLength
    connection.pointee.inFlight -= 1
    connection.pointee.inFlightBytes -= Int(slot.pointee.chargedBytes)
    if slot.pointee.error == NBDError.none {
      if slot.pointee.isRead {
        counters.add(.bytesRead, UInt64(slot.pointee.chargedBytes))
      } else {
        counters.add(.bytesWritten, UInt64(slot.pointee.chargedBytes))
      }
    }
    if slot.pointee.holdsOperation {
      target.release(TargetOperation(rawValue: slot.pointee.operation))
      state.pointee.heldOperations -= 1
    }
    table.giveBack(index)
    state.pointee.somethingReleased = true
  }

  /// Lets go of everything that would have been sent.
  private func dropOutput(_ index: Int32) {
    let connection = connections[index]
    while connection.pointee.replyHead >= 0 { dropFirstReply(connection) }
    connection.pointee.replySent = 0
    connection.pointee.handshakeOutput.removeAll()
    connection.pointee.handshakeSent = 0
    if connection.pointee.phase == .handshake {
      connection.pointee.inputEnded = true
      connection.pointee.closesWhenSent = true
    }
  }

  /// Sends what is left of the handshake.
  ///
  /// - Returns: whether all of it has left.
  private func flushHandshake(_ index: Int32) -> Bool {
    let connection = connections[index]
    let total = connection.pointee.handshakeOutput.count
    let unsent = connection.pointee.handshakeOutput[connection.pointee.handshakeSent...]
    // SAFETY: the kernel reads as many bytes as there are.
    let sent = unsafe unsent.withUnsafeBytes { bytes in
      unsafe Glibc.send(
        connection.pointee.descriptor, bytes.baseAddress, bytes.count, Int32(MSG_NOSIGNAL))
    }
    if sent < 0 {
      _ = sendFailed(index)
      return false
    }
    connection.pointee.handshakeSent += sent
    guard connection.pointee.handshakeSent == total else {
      waitForRoom(index)
      return false
    }
    connection.pointee.handshakeSent = 0
    connection.pointee.handshakeOutput.removeAll(keepingCapacity: connection.pointee.phase == .handshake)
    return true
  }

  private func waitForRoom(_ index: Int32) {
    connections[index].pointee.isSendBlocked = true
    watchWritable(index, true)
  }

  /// Waits for room, or takes note that nobody listens any more.
  ///
  /// Requests that came before are still done.
  private func sendFailed(_ index: Int32) -> Bool {
    let connection = connections[index]
    let code = errno
    switch code {
    case EINTR: enqueueFlush(index)
    case EAGAIN, EWOULDBLOCK: waitForRoom(index)
    default:
      connection.pointee.outputBroken = true
      enqueueFlush(index)
    }
    return false
  }
}
