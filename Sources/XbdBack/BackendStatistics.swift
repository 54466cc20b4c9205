// SPDX-License-Identifier: Apache-2.0

/// What queues have done since they were attached; sectors are 512 bytes.
public struct BackendStatistics: Equatable, Sendable {
  /// Read requests, indirect ones included.
  public var reads: UInt64 = 0
  /// Write requests, indirect ones included.
  public var writes: UInt64 = 0
  /// Barriers.
  public var barriers: UInt64 = 0
  /// Flushes.
  public var flushes: UInt64 = 0
  /// Discards.
  public var discards: UInt64 = 0
  /// Those of the reads and writes that were indirect.
  public var indirects: UInt64 = 0
  /// Sectors read.
  public var sectorsRead: UInt64 = 0
  /// Sectors written.
  public var sectorsWritten: UInt64 = 0
  /// Sectors discarded.
  public var sectorsDiscarded: UInt64 = 0
  /// Requests answered ERROR.
  public var errors: UInt64 = 0
  /// Requests answered EOPNOTSUPP.
  public var notSupported: UInt64 = 0
  /// Pages found mapped already.
  public var persistentHits: UInt64 = 0
  /// Pages mapped to be kept.
  public var persistentMisses: UInt64 = 0
  /// Kept pages that were unmapped to make room or for want of use.
  public var persistentEvictions: UInt64 = 0
  /// Pages that are kept mapped now.
  public var persistentGrants: UInt64 = 0
  /// Pages mapped for one request only.
  public var transientMaps: UInt64 = 0
  /// Calls that mapped or unmapped something.
  public var mapCalls: UInt64 = 0
  /// Stretches copied by the hypervisor.
  public var grantCopies: UInt64 = 0
  /// Requests that a worker had to wait for.
  public var slowRequests: UInt64 = 0
  /// Times that the frontend was notified.
  public var notificationsSent: UInt64 = 0
  /// Times that responses were published and it did not want to be.
  public var notificationsSuppressed: UInt64 = 0

  /// Pages that were kept mapped and in use when a request named them again; counted where they are then mapped again.
  public var grantsInUseAgain: UInt64 = 0
  /// Requests with a segment in their middle that is no whole page; counted where such are slow.
  public var unevenRequests: UInt64 = 0
  /// Refused requests that the backend has lost the memory of.
  public var lostRequests: UInt64 = 0

  /// Nothing done yet.
  public init() {}

  /// Both together.
  public static func + (left: Self, right: Self) -> Self {
    var sum = left
    let counters: [WritableKeyPath<Self, UInt64>] = [
      \.reads, \.writes, \.barriers, \.flushes, \.discards, \.indirects, \.sectorsRead, \.sectorsWritten,
      \.sectorsDiscarded, \.errors, \.notSupported, \.persistentHits, \.persistentMisses,
      \.persistentEvictions,
      \.persistentGrants, \.transientMaps, \.mapCalls, \.grantCopies, \.slowRequests, \.notificationsSent,
      \.notificationsSuppressed, \.grantsInUseAgain, \.unevenRequests, \.lostRequests,
    ]
    for counter in counters { sum[keyPath: counter] &+= right[keyPath: counter] }
    return sum
  }
}
