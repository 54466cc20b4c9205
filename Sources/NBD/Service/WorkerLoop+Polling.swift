// SPDX-License-Identifier: Apache-2.0
//
// Connections that keep the thread busy are looked at directly. While the event loop has a socket, each send of the
// client calls back into epoll under its lock, twice for a write: that is a twentieth of the time of a client that
// keeps a processor busy, and asking the loop is a system call of ours. So a connection that had something again and
// again without anybody sleeping for it leaves the event loop, and returns before the thread sleeps on it.

internal import Platform
internal import SystemPackage

extension WorkerLoop {
  /// How often in a row a connection must have had something before it leaves the event loop: leaving and returning
  /// cost a system call each.
  private static let readyToLeave = 16
  /// How often in a row it may have had nothing, while others kept the thread awake, before it returns.
  private static let vainToReturn = 64
  /// Where no connection is left in it, the event loop is asked once in so many looks: what else wakes the thread is
  /// looked at in each turn.
  private static let looksPerEvents = 8

  /// Looks for work without sleeping.
  func look() {
    for _ in 0..<polled.count where polled.count > 0 {
      let index = polled.removeFirst()
      // It returns to the end of the line before it is looked at, which may close it.
      polled.append(index)
      let connection = connections[index]
      if receiveNow(index) {
        connection.pointee.looksInVain = 0
      } else if connection.pointee.isPolled {
        connection.pointee.looksInVain += 1
        if connection.pointee.looksInVain > Self.vainToReturn { stopPolling(index) }
      }
    }
    state.pointee.looksSinceEvents += 1
    let isAlone = polled.count > 0 && polled.count == state.pointee.openConnections
    if isAlone && state.pointee.looksSinceEvents < Self.looksPerEvents { return }
    state.pointee.looksSinceEvents = 0
    lookForEvents(milliseconds: 0)
  }

  /// Receives from a connection that waits for requests, without asking the event loop.
  ///
  /// - Returns: whether it is to be served.
  func receiveNow(_ index: Int32) -> Bool {
    let connection = connections[index]
    if connection.pointee.isQueued { return true }
    guard connection.pointee.descriptor >= 0, connection.pointee.phase == .transmission,
      !connection.pointee.inputEnded, connection.pointee.blocked == .none
    else { return false }
    guard receive(index) else { return connection.pointee.isQueued }
    connection.pointee.hasUnparsed = true
    enqueue(index)
    return true
  }

  /// A connection had something that nobody slept for.
  @inline(__always)
  func cameUnwaited(_ index: Int32) {
    let connection = connections[index]
    connection.pointee.readyInARow &+= 1
    if connection.pointee.readyInARow >= Self.readyToLeave { startPolling(index) }
  }

  private func startPolling(_ index: Int32) {
    let connection = connections[index]
    guard !connection.pointee.isPolled, connection.pointee.descriptor >= 0,
      connection.pointee.phase == .transmission,
      !connection.pointee.peerClosed, !connection.pointee.watchesWritable, !state.pointee.isStopping
    else { return }
    connection.pointee.isPolled = true
    connection.pointee.looksInVain = 0
    counters.add(.polledConnections)
    events.remove(connection.pointee.descriptor)
    polled.append(index)
  }

  /// Gives a connection back to the event loop, which reports at once what has come meanwhile.
  func stopPolling(_ index: Int32) {
    let connection = connections[index]
    guard connection.pointee.isPolled else { return }
    connection.pointee.isPolled = false
    connection.pointee.readyInARow = 0
    polled.remove(index)
    // Only a lack of kernel memory gets here. Without events the connection would never go on.
    do throws(Errno) { try watch(index) } catch { close(index) }
  }

  /// Gives all of them back, before the thread sleeps on the event loop.
  func stopPolling() {
    while polled.count > 0 { stopPolling(polled.first) }
  }
}
