// SPDX-License-Identifier: Apache-2.0
//
// Whether clients have more requests ready than come at a time. A thread that answers at once sees one request after
// another, of a client with 32 in flight as of one that waits for each reply; only when it lets them pile up for a moment does
// it see the difference. So it does that now and then.

/// Learns how deep the queues of the clients are.
struct DepthPolicy {
  /// How long requests are let pile up to see how many there are, in nanoseconds.
  static let probe = 20_000
  /// Turns between two probes: less than one per cent of the time of a client that has one request in flight.
  private static let turnsPerProbe = 256
  /// So many requests at once for each connection are no coincidence.
  private static let probeDepth: UInt64 = 4

  /// Several requests come with each turn, or would if they were waited for.
  var isDeep: Bool { comesInBatches || probeFoundMany }

  /// Requests a turn, recent average, in sixteenths.
  private var averageBatch: UInt64 = 16
  private var comesInBatches = false
  private var probeFoundMany = false
  private var isProbing = false
  private var turnsUntilProbe = Self.turnsPerProbe

  /// Takes note of a turn that brought requests from so many open connections.
  @inline(__always)
  mutating func observe(batch: UInt64, connections: Int) {
    averageBatch = (averageBatch &* 7 &+ min(batch, 64) &* 16) >> 3
    // Two requests a turn, and no less than one and a half to stay: what depends on it costs a system call to change.
    comesInBatches = averageBatch >= (comesInBatches ? 24 : 32)
    turnsUntilProbe -= 1
    guard isProbing else { return }
    isProbing = false
    probeFoundMany = batch >= Self.probeDepth &* UInt64(max(connections, 1))
  }

  /// Asked when there is nothing to do: whether to wait for `probe` and see what has come by then.
  mutating func shouldProbe() -> Bool {
    guard turnsUntilProbe <= 0 else { return false }
    turnsUntilProbe = Self.turnsPerProbe
    isProbing = true
    return true
  }
}
