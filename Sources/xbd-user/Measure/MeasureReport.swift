// SPDX-License-Identifier: Apache-2.0

import Platform
import XbdFront

/// What `measure` found out.
struct MeasureReport: Encodable {
  var load: String
  var byteCount: UInt64
  var depth: Int
  var queues: Int
  var seconds: Double
  /// Requests answered well, and the rest.
  var requests: UInt64
  var failed: UInt64
  var requestsPerSecond: Double
  var mebibytesPerSecond: Double
  /// From submission to completion.
  var meanMicroseconds: Double
  var longestMicroseconds: Double
  /// Of this process: with an image of `--loopback` that is the backend's too.
  var processorSecondsPerGibibyte: Double
  /// Copied between private memory and granted pages; 1 is every byte once.
  var copiedPerByte: Double
  var grantsPerRequest: Double
  var ringRequestsPerRequest: Double
  var notificationsPerRequest: Double
  /// Events of the backend that the queues took, spurious ones included.
  var eventsPerRequest: Double

  init(
    device: BlockDevice, load pattern: LoadPattern, byteCount: UInt64, depth: Int, nanoseconds: UInt64,
    loads: [QueueLoad], processorSeconds: Double
  ) {
    load = pattern.rawValue
    self.byteCount = byteCount
    self.depth = depth
    queues = loads.count
    seconds = Double(nanoseconds) / 1e9
    requests = loads.reduce(0) { $0 + $1.completed }
    failed = loads.reduce(0) { $0 + $1.failed }
    let each = Double(max(requests, 1))
    let bytes = each * Double(byteCount)
    requestsPerSecond = Double(requests) / seconds
    mebibytesPerSecond = requestsPerSecond * Double(byteCount) / Double(1 << 20)
    meanMicroseconds = Double(loads.reduce(0) { $0 &+ $1.latencySum }) / each / 1e3
    longestMicroseconds = Double(loads.map(\.latencyMaximum).max() ?? 0) / 1e3
    processorSecondsPerGibibyte = processorSeconds / bytes * Double(1 << 30)
    let counters = loads.map(\.queue.counters)
    func sum(_ counter: KeyPath<QueueCounters, UInt64>) -> Double {
      Double(counters.reduce(0) { $0 &+ $1[keyPath: counter] })
    }
    copiedPerByte = sum(\.bytesCopied) / bytes
    grantsPerRequest = sum(\.grantsMade) / each
    ringRequestsPerRequest = (sum(\.directRequests) + sum(\.indirectRequests)) / each
    notificationsPerRequest = sum(\.notificationsSent) / each
    eventsPerRequest = sum(\.events) / each
  }

  /// For a person.
  var text: String {
    """
    \(load), \(byteCount) bytes, depth \(depth), \(queues) queue(s), \(Self.short(seconds)) s
      requests/s        \(Self.short(requestsPerSecond))
      MiB/s             \(Self.short(mebibytesPerSecond))
      mean latency      \(Self.short(meanMicroseconds)) µs, longest \(Self.short(longestMicroseconds)) µs
      processor         \(Self.short(processorSecondsPerGibibyte)) s/GiB
      copied            \(Self.short(copiedPerByte)) bytes for each byte
      for each request  \(Self.short(ringRequestsPerRequest)) on the ring, \(Self.short(grantsPerRequest)) grants made, \
    \(Self.short(notificationsPerRequest)) notifications, \(Self.short(eventsPerRequest)) events
    """
  }

  /// Three digits that count, and no more of them before the point than there are.
  private static func short(_ value: Double) -> String {
    if value >= 100 { return "\(Int(value.rounded()))" }
    let scale = value >= 10 ? 10.0 : value >= 1 ? 100 : 1000
    return "\((value * scale).rounded() / scale)"
  }
}
