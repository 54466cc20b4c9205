// SPDX-License-Identifier: Apache-2.0
//
// What follows a request's header: into the operation's memory, or dropped.

internal import Platform

extension WorkerLoop {
  /// Drops the payload of a refused request.
  ///
  /// - Returns: whether all of it has come.
  func skip(_ index: Int32) -> Bool {
    let connection = connections[index]
    let available = connection.pointee.buffer.count
    let dropped = min(connection.pointee.skipRemaining, UInt64(available))
    connection.pointee.buffer.consume(Int(dropped))
    connection.pointee.skipRemaining -= dropped
    guard connection.pointee.skipRemaining == 0 else { return false }
    let slot = connection.pointee.skipSlot
    connection.pointee.skipSlot = -1
    queueReply(slot)
    return true
  }

  /// Moves buffered bytes of a large payload into the target's memory; submits the write when it is complete.
  ///
  /// - Returns: whether it is.
  func takePayload(_ index: Int32) -> Bool {
    let connection = connections[index]
    let slot = table[connection.pointee.payloadSlot]
    let operation = TargetOperation(rawValue: slot.pointee.operation)
    let remaining = Int(slot.pointee.byteCount) - connection.pointee.payloadReceived
    let buffered = min(remaining, connection.pointee.buffer.count)
    if buffered > 0 {
      copyIn(operation, connection, at: connection.pointee.payloadReceived, buffered)
      connection.pointee.payloadReceived += buffered
    }
    guard buffered == remaining else { return false }
    connection.pointee.payloadSlot = -1
    slot.pointee.state = .running
    target.submit(operation)
    return true
  }

  /// Moves payload bytes from the buffer into an operation's memory.
  @inline(__always)
  func copyIn(
    _ operation: TargetOperation, _ connection: Entry<Connection>, at offset: Int, _ count: Int
  ) {
    counters.add(.bytesCopied, UInt64(count))
    transfer.pointee.copy(count, from: connection.pointee.buffer, to: operation, of: target, at: offset)
    connection.pointee.buffer.consume(count)
  }
}
