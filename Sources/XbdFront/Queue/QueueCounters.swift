// SPDX-License-Identifier: Apache-2.0

/// What a queue has done since it was connected.
///
/// Plain numbers, all cumulative unless said otherwise.
public struct QueueCounters: Sendable, Equatable {
  /// Operations that callers asked for, by command.
  public var reads: UInt64 = 0
  /// Operations of the kind write.
  public var writes: UInt64 = 0
  /// Operations of the kind flush.
  public var flushes: UInt64 = 0
  /// Operations of the kind discard.
  public var discards: UInt64 = 0
  /// Operations of the kind writeZeroes.
  public var writeZeroes: UInt64 = 0
  /// Operations that ended with anything but success.
  public var failures: UInt64 = 0
  /// Bytes asked for by reads.
  public var bytesRead: UInt64 = 0
  /// Bytes asked for by writes.
  public var bytesWritten: UInt64 = 0
  /// Operations that did not begin and end at sectors.
  public var unalignedOperations: UInt64 = 0
  /// Reads and writes whose payload travelled in granted pages.
  public var directOperations: UInt64 = 0
  /// Reads and writes whose payload was copied through private memory.
  public var bouncedOperations: UInt64 = 0

  /// Ring requests with their segments in the ring.
  public var directRequests: UInt64 = 0
  /// Ring requests with their segments in pages of their own.
  public var indirectRequests: UInt64 = 0
  /// Segments in all requests.
  public var segments: UInt64 = 0
  /// Responses taken in.
  public var responses: UInt64 = 0
  /// Responses to indirect requests that carried operation 6 instead of the inner one.
  public var outerOperationResponses: UInt64 = 0
  /// Requests that the backend refused as unsupported although it had offered them.
  public var unsupportedResponses: UInt64 = 0

  /// Bytes copied between private memory and granted pages.
  public var bytesCopied: UInt64 = 0
  /// Time spent copying them.
  public var copyNanoseconds: UInt64 = 0

  /// Grants made, each a page shared with the backend.
  public var grantsMade: UInt64 = 0
  /// Grants ended.
  public var grantsEnded: UInt64 = 0
  /// Pages used again without being shared again.
  public var grantsReused: UInt64 = 0
  /// The most pages in use at once.
  public var poolHighWater: UInt64 = 0
  /// Pages shared at this moment.
  public var poolPages: UInt64 = 0
  /// The most pages that the pool may have at this moment.
  public var poolBound: UInt64 = 0

  /// Notifications sent to the backend.
  public var notificationsSent: UInt64 = 0
  /// Notifications repeated because nothing was answered for a while.
  public var notificationsRepeated: UInt64 = 0
  /// Times that the ring was published without one, because the backend was awake.
  public var notificationsSuppressed: UInt64 = 0
  /// Events received.
  public var events: UInt64 = 0
  /// Events with no response behind them.
  public var spuriousEvents: UInt64 = 0
  /// Times that the port was kept masked for a while because events came without responses.
  public var eventsHeldBack: UInt64 = 0

  /// Operations that had to wait because the ring was full.
  public var waitsForRing: UInt64 = 0
  /// Operations that had to wait because no granted page was free.
  public var waitsForPages: UInt64 = 0
  /// Operations refused for the moment because the operation table was full.
  public var waitsForOperations: UInt64 = 0
  /// Operations that waited for an unaligned write, or as one.
  public var waitsForSectors: UInt64 = 0

  /// Times that the device was connected again.
  public var reconnections: UInt64 = 0
  /// Operations that were in flight then and have been put into another ring.
  public var resubmissions: UInt64 = 0

  /// All zero.
  public init() {}
}
