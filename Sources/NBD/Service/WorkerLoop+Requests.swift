// SPDX-License-Identifier: Apache-2.0
//
// From bytes to requests, and from requests to the target. Nothing is taken out of the buffer before everything
// that can be refused for lack of room has been obtained, so that going on later means parsing again.

internal import CXen
internal import Glibc
internal import Platform

/// Why parsing stopped.
enum ParseResult {
  /// All that is buffered has been used; more bytes are needed.
  case needsMore
  /// Others are to have their turn.
  case endOfTurn
  /// Replies of this connection have to leave first.
  case blockedOnOwnLimit
  /// The target or the table of requests is full.
  case blockedOnResources
  /// No further request will be taken from this connection, or it is closed.
  case ended
}

extension WorkerLoop {
  /// Takes as many whole requests out of the buffer as may be taken now.
  func parse(_ index: Int32) -> ParseResult {
    let connection = connections[index]
    var turnBytes = 0
    while true {
      if connection.pointee.phase == .handshake {
        guard let result = shakeHands(index) else { continue }
        return result
      }
      if connection.pointee.skipSlot >= 0 && !skip(index) { return .needsMore }
      if connection.pointee.payloadSlot >= 0 {
        guard takePayload(index) else { return .needsMore }
      }
      if connection.pointee.inputEnded && connection.pointee.buffer.count == 0 {
        return connection.pointee.blocked == .none ? .ended : .needsMore
      }
      let size =
        connection.pointee.style == .extended ? NBDWire.extendedRequest : NBDWire.compactRequest
      let available = connection.pointee.buffer.count
      if available < size { return connection.pointee.inputEnded ? .ended : .needsMore }
      if turnBytes >= Self.turnBytes { return .endOfTurn }
      if connection.pointee.unsentBytes >= Self.unsentLimit
        || connection.pointee.inFlight >= configuration.maximumRequestsPerConnection
        || connection.pointee.inFlightBytes >= configuration.maximumBytesPerConnection
      {
        return .blockedOnOwnLimit
      }
      guard
        let header = connection.pointee.buffer.withBytes(
          count: size, { RequestHeader($0, style: connection.pointee.style) }),
        // proto.md: a payload no server would take ends the connection; up to 32 bits it can be dropped.
        header.payloadLength <= UInt64(UInt32.max)
      else {
        close(index)
        return .ended
      }
      let step = takeRequest(index, header, size, available)
      if step.result != nil { return step.result ?? .ended }
      turnBytes += step.bytes
    }
  }

  /// Takes one request whose header is complete.
  ///
  /// - Returns: why to stop, or nil to go on, and the payload bytes that the request moves.
  @inline(__always)
  private func takeRequest(_ index: Int32, _ header: RequestHeader, _ size: Int, _ available: Int) -> (
    result: ParseResult?, bytes: Int
  ) {
    let connection = connections[index]
    var header = header
    let payload = Int(header.payloadLength)
    var verdict: RequestVerdict
    if header.command == NBDCommand.blockStatus && payload > 0 {
      guard payload <= NBDWire.longestString else {
        return (refuse(index, header, size, NBDError.invalid), 0)
      }
      guard available >= size + payload else {
        connection.pointee.quota.needs(size + payload)
        return (stopForMore(connection), 0)
      }
      verdict = blockStatusPayload(connection, &header, size, payload)
      if state.pointee.isStopping { verdict = .answer(NBDError.shutdown) }
      guard table.hasFree, mayBegin(index) else { return (.blockedOnResources, 0) }
      connection.pointee.buffer.consume(payload)
    } else {
      verdict = header.verdict(state.pointee.geometry, connection.pointee.session)
      if state.pointee.isStopping, header.command != NBDCommand.disconnect {
        verdict = .answer(NBDError.shutdown)
      }
    }
    switch verdict {
    case .disconnect:
      counters.add(.disconnects)
      connection.pointee.buffer.consumeAll()
      connection.pointee.inputEnded = true
      return (.ended, 0)
    case .answer(let error):
      if payload > 0 && header.command != NBDCommand.blockStatus {
        return (refuse(index, header, size, error), 0)
      }
      return (answer(index, header, size, error, .status), 0)
    case .blockStatus:
      return (answer(index, header, size, NBDError.none, .blockStatus), 0)
    case .perform(let command):
      return perform(index, header, command, size, available)
    }
  }

  /// A whole message is not there yet; after the end of the input it never will be.
  func stopForMore(_ connection: Entry<Connection>) -> ParseResult {
    connection.pointee.inputEnded ? .ended : .needsMore
  }

  /// Connections that wait for the target are not overtaken.
  @inline(__always)
  private func mayBegin(_ index: Int32) -> Bool {
    waitQueue.count == 0 || waitQueue.first == index
  }

  /// Hands a good request to the target.
  @inline(__always)
  private func perform(
    _ index: Int32, _ header: RequestHeader, _ command: TargetRequest.Command, _ size: Int, _ available: Int
  ) -> (ParseResult?, Int) {
    let connection = connections[index]
    let payload = Int(header.payloadLength)
    let isDirect = payload > configuration.directThreshold
    if payload > 0 && !isDirect && available < size + payload {
      connection.pointee.quota.needs(size + payload)
      return (stopForMore(connection), 0)
    }
    guard mayBegin(index) else { return (.blockedOnResources, 0) }
    let slotIndex = table.take()
    guard slotIndex >= 0 else { return (.blockedOnResources, 0) }
    let request = TargetRequest(
      command: command, forceUnitAccess: header.flags & NBDCommandFlag.fua != 0,
      keepAllocated: header.flags & NBDCommandFlag.noHole != 0, byteOffset: header.byteOffset,
      byteCount: header.length)
    guard let operation = target.begin(request, tag: table.tag(slotIndex)) else {
      table.giveBack(slotIndex)
      // With nothing outstanding nothing will ever be given back, so waiting would be for ever.
      if state.pointee.heldOperations > 0 { return (.blockedOnResources, 0) }
      if payload > 0 { return (refuse(index, header, size, NBDError.noMemory), 0) }
      return (answer(index, header, size, NBDError.noMemory, .status), 0)
    }
    state.pointee.heldOperations += 1
    state.pointee.batch &+= 1
    let slot = fill(slotIndex, index, header)
    slot.pointee.operation = operation.rawValue
    slot.pointee.holdsOperation = true
    let carriesData = command == .read || command == .write
    let bytes = carriesData ? Int(header.length) : 0
    slot.pointee.chargedBytes = UInt32(truncatingIfNeeded: bytes)
    connection.pointee.inFlightBytes += bytes
    connection.pointee.buffer.consume(size)
    if command == .read { slot.pointee.reply = .data }
    count(header.command)
    if isDirect {
      slot.pointee.state = .receiving
      connection.pointee.payloadSlot = slotIndex
      connection.pointee.payloadReceived = 0
      // Its time begins with its memory: until now it may have waited for that.
      connection.pointee.lastProgress = state.pointee.now
      connection.pointee.quota.expectsHeader(size)
      return (nil, 0)
    }
    connection.pointee.quota.took(size + payload)
    if payload > 0 {
      copyIn(operation, connection, at: 0, payload)
    }
    slot.pointee.state = .running
    target.submit(operation)
    return (nil, bytes)
  }

  /// Fills in a slot for a request and charges it to its connection.
  @inline(__always)
  private func fill(_ slotIndex: Int32, _ index: Int32, _ header: RequestHeader) -> Entry<RequestSlot> {
    let slot = table[slotIndex]
    slot.pointee.cookie = header.cookie
    slot.pointee.byteOffset = header.byteOffset
    slot.pointee.byteCount = header.length
    slot.pointee.connection = index
    slot.pointee.next = -1
    slot.pointee.error = NBDError.none
    slot.pointee.chargedBytes = 0
    slot.pointee.reply = .status
    slot.pointee.isRead = header.command == NBDCommand.read
    slot.pointee.holdsOperation = false
    connections[index].pointee.inFlight += 1
    return slot
  }

  /// Answers a request without the target; its payload, if any, has been dealt with.
  private func answer(
    _ index: Int32, _ header: RequestHeader, _ size: Int, _ error: UInt32, _ kind: ReplyKind
  ) -> ParseResult? {
    guard mayBegin(index) else { return .blockedOnResources }
    let slotIndex = table.take()
    guard slotIndex >= 0 else { return .blockedOnResources }
    let connection = connections[index]
    connection.pointee.buffer.consume(size)
    let slot = fill(slotIndex, index, header)
    slot.pointee.error = error
    slot.pointee.reply = kind
    if kind == .blockStatus {
      let isOne = header.flags & NBDCommandFlag.reqOne != 0
      slot.pointee.byteCount = extent(header, isOne: isOne, connection.pointee.style)
    }
    connection.pointee.quota.took(size)
    state.pointee.batch &+= 1
    count(header.command)
    queueReply(slotIndex)
    return nil
  }

  /// Refuses a request that has a payload: drops the payload as it comes, then answers.
  private func refuse(_ index: Int32, _ header: RequestHeader, _ size: Int, _ error: UInt32) -> ParseResult? {
    guard mayBegin(index) else { return .blockedOnResources }
    let slotIndex = table.take()
    guard slotIndex >= 0 else { return .blockedOnResources }
    let connection = connections[index]
    connection.pointee.buffer.consume(size)
    let slot = fill(slotIndex, index, header)
    slot.pointee.state = .skipping
    slot.pointee.error = state.pointee.isStopping ? NBDError.shutdown : error
    connection.pointee.skipSlot = slotIndex
    connection.pointee.skipRemaining = header.payloadLength
    connection.pointee.quota.lift()
    state.pointee.batch &+= 1
    count(header.command)
    return nil
  }

  @inline(__always)
  private func count(_ command: UInt16) {
    switch command {
    case NBDCommand.read: counters.add(.reads)
    case NBDCommand.write: counters.add(.writes)
    case NBDCommand.flush: counters.add(.flushes)
    case NBDCommand.trim: counters.add(.trims)
    case NBDCommand.cache: counters.add(.caches)
    case NBDCommand.writeZeroes: counters.add(.writeZeroes)
    case NBDCommand.blockStatus: counters.add(.blockStatuses)
    default: counters.add(.unknownCommands)
    }
  }
}
