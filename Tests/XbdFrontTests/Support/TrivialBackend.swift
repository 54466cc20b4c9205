// SPDX-License-Identifier: Apache-2.0

import Blkif
import Xen

@testable import XbdFront

/// Answers everything with success, touches no data and allocates nothing: what is left is the queue's own cost.
final class TrivialBackend: InlineBackend, @unchecked Sendable {
  // SAFETY: runs on the queue's thread only.
  private var ring: BackRing
  private let copy = UnsafeMutableRawPointer.allocate(byteCount: 112, alignment: 8)

  init(ringPages: SharedPages) throws(RingViolation) {
    ring = try BackRing(pages: ringPages.baseAddress, pageCount: ringPages.pageCount, abi: .native)
  }
  deinit { copy.deallocate() }
  var wakeDescriptor: Int32 { -1 }

  func run() -> Bool {
    guard let count = try? ring.availableRequests(), count > 0 else { return false }
    for _ in 0..<count {
      let request = ring.takeRequest(into: copy)
      let operation = request.operation == 6 ? request.indirectOperation : request.operation
      ring.push(id: request.id, operation: operation, status: 0)
    }
    _ = ring.publish()
    return true
  }
}
