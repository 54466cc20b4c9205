// SPDX-License-Identifier: Apache-2.0
//
// A connection before its first request.

internal import Platform

extension WorkerLoop {
  /// Moves the handshake on by one message.
  ///
  /// - Returns: why to stop; nil to go on.
  func shakeHands(_ index: Int32) -> ParseResult? {
    let connection = connections[index]
    guard !connection.pointee.closesWhenSent else { return .ended }
    if connection.pointee.handshakeOutput.count >= Self.handshakeLimit { return .blockedOnOwnLimit }
    // Taken out for the time of the call: its input lies in the connection as well.
    guard var handshake = connection.pointee.handshake.take() else { return .ended }
    let step = connection.pointee.buffer.withBytes(count: connection.pointee.buffer.count) { bytes in
      handshake.receive(
        Span(_bytes: bytes), geometry: state.pointee.geometry, isStopping: state.pointee.isStopping)
    }
    connection.pointee.handshake = handshake
    connection.pointee.buffer.consume(step.consumed)
    switch step.action {
    case .none:
      if step.consumed > 0 { return nil }
      return stopForMore(connection)
    case .send(let bytes):
      connection.pointee.handshakeOutput += bytes
      enqueueFlush(index)
      return nil
    case .close(let bytes):
      connection.pointee.handshakeOutput += bytes
      connection.pointee.closesWhenSent = true
      connection.pointee.inputEnded = true
      enqueueFlush(index)
      return .ended
    case .transmit(let bytes, let session):
      connection.pointee.handshakeOutput += bytes
      connection.pointee.handshake = nil
      connection.pointee.phase = .transmission
      connection.pointee.lastProgress = state.pointee.now
      connection.pointee.session = session
      state.pointee.handshakes -= 1
      enqueueFlush(index)
      return nil
    }
  }
}
