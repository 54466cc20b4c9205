// SPDX-License-Identifier: Apache-2.0
//
// What a queue is told when it is attached, and what it tells the control plane afterwards.

internal import Blkif
internal import Xen

/// What the control plane negotiated for one ring.
struct QueueParameters {
  var frontend: DomainID
  var abi: ABI
  var persistent: Bool
  var configuration: BackendConfiguration
  var readOnly: Bool
  var discard: BackendConfiguration.Support
  var secureDiscard: Bool
  /// Shared by all queues and connections of the device; nil when nothing goes wrong on purpose.
  var faults: FaultInjector?
}

/// Features that were offered and turned out not to work.
struct Withdrawal: OptionSet {
  let rawValue: UInt8
  static let flush = Withdrawal(rawValue: 1)
  static let barrier = Withdrawal(rawValue: 2)
  static let discard = Withdrawal(rawValue: 4)

  /// The nodes that say so.
  var keys: [String] {
    [
      (Withdrawal.flush, Key.featureFlushCache), (.barrier, Key.featureBarrier),
      (.discard, Key.featureDiscard),
    ]
    .compactMap { contains($0.0) ? $0.1 : nil }
  }
}
