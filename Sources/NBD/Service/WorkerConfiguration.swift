// SPDX-License-Identifier: Apache-2.0

/// The bounds and habits of one worker.
public struct WorkerConfiguration: Sendable {
  /// Connections at a time; further ones are closed as soon as they come.
  public var maximumConnections = 64
  /// Requests taken in and not answered yet, over all connections of the worker.
  public var maximumRequests = 1024
  /// The same for one connection.
  public var maximumRequestsPerConnection = 256
  /// Payload bytes of requests not answered yet, for one connection; one request may always go beyond.
  public var maximumBytesPerConnection = 64 << 20
  /// Writes with a payload of more bytes than this are received straight into the target's memory; others are
  /// copied out of a buffer that one receive fills with many of them.
  public var directThreshold = 32 << 10
  /// The longest busy wait before the thread sleeps, in microseconds; 0 never spins.
  public var maximumSpinMicroseconds = 50
  /// How long a client may take over the handshake.
  public var handshakeTimeout = Duration.seconds(60)
  /// When the target is full, how long a client may keep its memory without moving a byte before it is dropped.
  public var stallTimeout = Duration.seconds(30)

  /// The default bounds.
  public init() {}
}
