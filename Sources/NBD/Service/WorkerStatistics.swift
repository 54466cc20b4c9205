// SPDX-License-Identifier: Apache-2.0
//
// What a worker counts. One thread writes, any may read: relaxed atomics, a load and a store each.

internal import Platform
internal import Synchronization

/// One worker's numbers, or the sum of several workers', since they started.
public struct WorkerStatistics: Sendable, Equatable {
  /// What is counted.
  public enum Counter: Int, CaseIterable, Sendable {
    /// Connections taken on.
    case connectionsOpened
    /// Connections that ended, for whatever reason.
    case connectionsClosed
    /// Connections that ended before their handshake did.
    case handshakesFailed
    /// Connections turned away because there were too many.
    case connectionsRefused
    /// Requests by command.
    case reads, writes, flushes, trims, caches, writeZeroes, blockStatuses, disconnects, unknownCommands
    /// Replies that carried an error.
    case errorReplies
    /// Payload bytes sent to clients.
    case bytesRead
    /// Payload bytes taken from clients.
    case bytesWritten
    /// Of those, bytes copied out of the receive buffer; the rest was received in place.
    case bytesCopied
    /// Receives that brought something.
    case receives
    /// Sends that took something.
    case sends
    /// Replies sent.
    case replies
    /// Times that a connection had to wait because the target was full.
    case targetFull
    /// Turns of the loop.
    case turns
    /// Times the thread slept.
    case sleeps
    /// Of those, times that it would not have taken the processor from others when woken.
    case patientSleeps
    /// Times the thread let requests pile up for a moment before it looked again.
    case gathers
    /// Times that a connection left the event loop, to be looked at directly while it keeps the thread busy.
    case polledConnections
    /// Times the thread spun before it would sleep.
    case spins
    /// Of those, times that something came.
    case spinHits
    /// Nanoseconds spent spinning.
    case spinNanoseconds
  }

  private var values: [UInt64]

  /// All zero.
  public init() {
    values = Array(repeating: 0, count: Counter.allCases.count)
  }

  /// One number.
  public subscript(counter: Counter) -> UInt64 {
    get { values[counter.rawValue] }
    set { values[counter.rawValue] = newValue }
  }

  /// Adds another worker's numbers.
  public mutating func add(_ other: WorkerStatistics) {
    for index in values.indices { values[index] &+= other.values[index] }
  }

  /// Connections open at this moment.
  public var connectionsOpen: UInt64 { self[.connectionsOpened] &- self[.connectionsClosed] }

  /// Requests of every kind.
  public var requests: UInt64 {
    let commands: [Counter] = [
      .reads, .writes, .flushes, .trims, .caches, .writeZeroes, .blockStatuses, .disconnects,
      .unknownCommands,
    ]
    return commands.reduce(0) { $0 &+ self[$1] }
  }

  /// Requests that a receive brought, on average.
  public var requestsPerReceive: Double { Double(requests) / Double(max(self[.receives], 1)) }

  /// Replies that a send took, on average.
  public var repliesPerSend: Double { Double(self[.replies]) / Double(max(self[.sends], 1)) }
}

/// The counters behind `WorkerStatistics`.
///
/// Only the worker's thread adds.
final class WorkerCounters: Sendable {
  private let values = Table<Atomic<UInt64>>(count: WorkerStatistics.Counter.allCases.count) { _ in Atomic(0)
  }

  /// Adds; only for the thread that owns the worker.
  @inline(__always)
  func add(_ counter: WorkerStatistics.Counter, _ amount: UInt64 = 1) {
    let value = values[counter.rawValue].load(ordering: .relaxed)
    values[counter.rawValue].store(value &+ amount, ordering: .relaxed)
  }

  /// What was counted so far; from any thread, each number on its own.
  func snapshot() -> WorkerStatistics {
    var statistics = WorkerStatistics()
    for counter in WorkerStatistics.Counter.allCases {
      statistics[counter] = values[counter.rawValue].load(ordering: .relaxed)
    }
    return statistics
  }
}
