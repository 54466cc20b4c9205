// SPDX-License-Identifier: Apache-2.0
//
// Connections as they come and go, and the queues that they stand in.

internal import CXen
internal import Glibc
internal import Platform
internal import SystemPackage

extension WorkerLoop {
  /// What a connection is watched for, edge-triggered (EPOLLET): an event says that something changed.
  ///
  /// So a connection that is not being read costs no call, and reading one costs no change of what is watched.
  private static let inputInterest: Readiness = [.readable, .peerClosed, Readiness(rawValue: 1 << 31)]
  private static let allInterest: Readiness = inputInterest.union(.writable)
  /// In place of a connection: the flush that ends the thread.
  static let finalFlush: Int32 = -2

  /// Takes on a connected socket and sends the greeting.
  func adopt(_ descriptor: Int32) {
    var free: Int32 = -1
    for index in 0..<Int32(clamping: connections.count)
    where free < 0 && connections[index].pointee.descriptor < 0 {
      free = index
    }
    guard free >= 0, !state.pointee.isStopping, makeConnection(free) else {
      counters.add(.connectionsRefused)
      _ = Glibc.close(descriptor)
      limiter.leave()
      return
    }
    let connection = connections[free]
    connection.pointee.descriptor = descriptor
    connection.pointee.lastProgress = MonotonicClock.nanoseconds()
    connection.pointee.handshake = Handshake(export: export)
    connection.pointee.handshakeOutput = Handshake.greeting
    counters.add(.connectionsOpened)
    state.pointee.openConnections += 1
    state.pointee.handshakes += 1
    do throws(Errno) {
      try setNonBlocking(descriptor)
      try watch(free)
    } catch {
      close(free)
      return
    }
    connection.pointee.isReadable = true
    enqueue(free)
    enqueueFlush(free)
  }

  /// Prepares an unused entry for another connection.
  ///
  /// - Returns: false when there is no memory for its buffer.
  private func makeConnection(_ index: Int32) -> Bool {
    let connection = connections[index]
    let generation = connection.pointee.generation &+ 1
    var fresh = Connection()
    do throws(Errno) { fresh.buffer = try ReceiveBuffer(byteCount: Self.bufferSize) } catch { return false }
    fresh.generation = generation
    connection.pointee = fresh
    return true
  }

  private func token(_ index: Int32) -> UInt64 {
    UInt64(connections[index].pointee.generation) << 32 | UInt64(UInt32(bitPattern: index))
  }

  /// Has the event loop watch a connection's socket.
  func watch(_ index: Int32) throws(Errno) {
    let connection = connections[index]
    let interest = connection.pointee.watchesWritable ? Self.allInterest : Self.inputInterest
    try events.add(connection.pointee.descriptor, interest, token: token(index))
  }

  /// Starts or stops to be told when there is room to send.
  func watchWritable(_ index: Int32, _ watches: Bool) {
    let connection = connections[index]
    guard connection.pointee.watchesWritable != watches else { return }
    stopPolling(index)
    connection.pointee.watchesWritable = watches
    let interest = watches ? Self.allInterest : Self.inputInterest
    do throws(Errno) {
      try events.modify(connection.pointee.descriptor, interest, token: token(index))
    } catch {
      // Only a lack of kernel memory gets here. Without the event the connection would never go on.
      close(index)
    }
  }

  /// Puts a connection in line to be served.
  @inline(__always)
  func enqueue(_ index: Int32) {
    let connection = connections[index]
    guard !connection.pointee.isQueued, connection.pointee.blocked != .resources else { return }
    connection.pointee.isQueued = true
    runQueue.append(index)
  }

  /// Puts a connection in line to send what it has.
  @inline(__always)
  func enqueueFlush(_ index: Int32) {
    let connection = connections[index]
    guard !connection.pointee.isFlushQueued else { return }
    connection.pointee.isFlushQueued = true
    flushQueue.append(index)
  }

  /// Makes a connection wait for the target, behind those that wait already.
  func waitForResources(_ index: Int32) {
    connections[index].pointee.blocked = .resources
    counters.add(.targetFull)
    waitQueue.append(index)
  }

  /// Serves waiting connections from the front for as long as they get what they wait for.
  func wakeWaiting() {
    state.pointee.somethingReleased = false
    for _ in 0..<waitQueue.count where waitQueue.count > 0 {
      let index = waitQueue.first
      let connection = connections[index]
      // Stays in the queue while it tries, so that nobody else takes its place.
      connection.pointee.blocked = .none
      connection.pointee.hasUnparsed = true
      guard parse(index) != .blockedOnResources else {
        connection.pointee.blocked = .resources
        return
      }
      waitQueue.remove(index)
      if connection.pointee.descriptor >= 0 { enqueue(index) }
    }
  }

  /// Ends a connection at once.
  ///
  /// What the target still has of it is released when it comes back.
  func close(_ index: Int32) {
    let connection = connections[index]
    guard connection.pointee.descriptor >= 0 else { return }
    if connection.pointee.phase == .handshake {
      state.pointee.handshakes -= 1
      counters.add(.handshakesFailed)
    }
    for slot in 0..<Int32(clamping: table.count) where table[slot].pointee.connection == index {
      abandon(slot)
    }
    events.remove(connection.pointee.descriptor)
    _ = Glibc.close(connection.pointee.descriptor)
    if connection.pointee.isQueued { runQueue.remove(index) }
    if connection.pointee.isFlushQueued { flushQueue.remove(index) }
    waitQueue.remove(index)
    polled.remove(index)
    let generation = connection.pointee.generation
    connection.pointee = Connection()
    connection.pointee.generation = generation
    if state.pointee.hotConnection == index { state.pointee.hotConnection = -1 }
    state.pointee.openConnections -= 1
    counters.add(.connectionsClosed)
    limiter.leave()
  }

  /// Lets go of a request whose client is gone.
  private func abandon(_ index: Int32) {
    let slot = table[index]
    let operation = TargetOperation(rawValue: slot.pointee.operation)
    switch slot.pointee.state {
    case .free: return
    case .running:
      slot.pointee.connection = -1
      return
    case .receiving:
      target.cancel(operation)
      state.pointee.heldOperations -= 1
    case .answered:
      if slot.pointee.holdsOperation {
        target.release(operation)
        state.pointee.heldOperations -= 1
      }
    case .skipping: break
    }
    table.giveBack(index)
    state.pointee.somethingReleased = true
  }

  /// Tells one connection that the service is going down.
  func beginStopping(_ index: Int32) {
    let connection = connections[index]
    if connection.pointee.payloadSlot >= 0 {
      // The rest of the payload is dropped as it comes, and the write refused.
      let slot = table[connection.pointee.payloadSlot]
      target.cancel(TargetOperation(rawValue: slot.pointee.operation))
      state.pointee.heldOperations -= 1
      slot.pointee.state = .skipping
      slot.pointee.holdsOperation = false
      slot.pointee.error = NBDError.shutdown
      connection.pointee.skipSlot = connection.pointee.payloadSlot
      connection.pointee.skipRemaining = slot.pointee.byteCount &- UInt64(connection.pointee.payloadReceived)
      connection.pointee.payloadSlot = -1
      connection.pointee.quota.lift()
    }
    connection.pointee.hasUnparsed = true
    connection.pointee.isReadable = true
    enqueue(index)
  }

  /// Closes what is done, and everything when time is up.
  ///
  /// - Returns: whether no connection is left.
  func stopIfDone() -> Bool {
    let isLate = MonotonicClock.nanoseconds() >= state.pointee.stopDeadline
    for index in 0..<connections.count where connections[index].pointee.descriptor >= 0 {
      let connection = connections[index]
      // A connection is quiet when everything it sent so far was looked at and answered.
      let isQuiet =
        !connection.pointee.isReadable && !connection.pointee.isQueued
        && connection.pointee.inFlight
          == (connection.pointee.skipSlot >= 0 ? 1 : 0)
        && !hasOutput(connection)
      if isLate || isQuiet { close(Int32(index)) }
    }
    return state.pointee.openConnections == 0
  }

  /// The last acts of the thread: a flush of the device, and sockets that nobody took.
  func finish() -> WorkerOutcome {
    for message in mailbox.close() {
      guard case .adopt(let descriptor) = message else { continue }
      _ = Glibc.close(descriptor)
      limiter.leave()
    }
    let deadline = max(state.pointee.stopDeadline, MonotonicClock.nanoseconds() &+ 1_000_000_000)
    let isFlushDue = state.pointee.geometry.canFlush && !state.pointee.geometry.isReadOnly
    if isFlushDue { flushTarget(deadline) }
    // What still runs has nobody to tell; the memory is the target's.
    while state.pointee.heldOperations > 0, MonotonicClock.nanoseconds() < deadline { waitForTarget() }
    group.leave()
    // The others' last flushes may come through this target.
    let latest = max(deadline, deadline &+ 2_000_000_000)
    while group.isBusy, MonotonicClock.nanoseconds() < latest { waitForTarget() }
    target.onCompletion = { _, _, _ in }
    target.onDescriptorsChange = { _, _ in }
    return WorkerOutcome(
      finalFlush: state.pointee.finalFlush, flushWasDue: isFlushDue,
      abandonedOperations: state.pointee.heldOperations)
  }

  private func flushTarget(_ deadline: UInt64) {
    while MonotonicClock.nanoseconds() < deadline {
      let slot = table.take()
      if slot >= 0 {
        let request = TargetRequest(command: .flush, byteOffset: 0, byteCount: 0)
        if let operation = target.begin(request, tag: table.tag(slot)) {
          fill(slot, operation, connection: Self.finalFlush)
          target.submit(operation)
          return
        }
        table.giveBack(slot)
      }
      waitForTarget()
    }
  }

  private func fill(_ index: Int32, _ operation: TargetOperation, connection: Int32) {
    let slot = table[index]
    slot.pointee.operation = operation.rawValue
    slot.pointee.connection = connection
    slot.pointee.state = .running
    slot.pointee.holdsOperation = true
    state.pointee.heldOperations += 1
  }

  private func waitForTarget() {
    // The flush's notification may be the one that gets lost.
    _ = target.keepTime(MonotonicClock.nanoseconds())
    if !target.poll() && target.armWakeup() { _ = events.wait(milliseconds: 5) }
  }
}
