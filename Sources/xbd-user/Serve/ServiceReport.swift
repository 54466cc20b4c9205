// SPDX-License-Identifier: Apache-2.0
//
// `--stats`: what every layer counted, as JSON.

import NBD
import XbdBack
import XbdFront

/// The numbers of one run, from the socket down to the backend.
struct ServiceReport: Encodable {
  var service: [String: UInt64] = [:]
  var queues: [[String: UInt64]] = []
  var backend: [String: UInt64]?

  init(service: WorkerStatistics, queues: [QueueCounters], backend: BackendStatistics?) {
    for counter in WorkerStatistics.Counter.allCases { self.service["\(counter)"] = service[counter] }
    self.queues = queues.map(Self.numbers)
    self.backend = backend.map(Self.numbers)
  }

  /// The stored numbers of a plain struct by their names.
  private static func numbers(_ value: some Any) -> [String: UInt64] {
    var numbers: [String: UInt64] = [:]
    for child in Mirror(reflecting: value).children {
      if let label = child.label, let number = child.value as? UInt64 { numbers[label] = number }
    }
    return numbers
  }
}
