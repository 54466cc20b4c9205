// SPDX-License-Identifier: Apache-2.0
//
// What a request costs the backend by itself, on demand:
//   XBD_BACK_COST=1 swift test -c release -Xswiftc -enable-testing --filter RequestCost

import TestSupport
import Blkif
import Glibc
import Platform
import Testing
import Xen

@testable import XbdBack

@Suite(.enabled(if: getenv("XBD_BACK_COST") != nil), .serialized) struct RequestCost {
  @Test(arguments: [("memory", 1), ("memory", 11), ("null", 1), ("memory", 256), ("file", 1)])
  func nanosecondsOfOneRequest(kind: String, pages: Int) throws {
    let size: UInt64 = 64 << 20
    let scratch = try ScratchDirectory()
    let storage: any Storage
    switch kind {
    case "memory": storage = try MemoryStorage(byteCount: size)
    case "null": storage = NullStorage(byteCount: size)
    default:
      try makeImage(scratch.file("disk"), byteCount: Int(size))
      storage = try FileStorage(path: scratch.file("disk"))
    }
    try withBackend { frontend, backend in
      try frontend.connect(backend, storage)
      let queue = try #require(frontend.device?.colocatedQueue(0))
      var warm = [UInt8](repeating: 3, count: Int(size))
      #expect(transfer(storage, .write, at: 0, &warm) == .done)
      var generator = SeededGenerator(seed: 3)
      let first = frontend.dataPage
      let list = first + 1024
      for operation in [BlockOperation.read, .write] {
        var total: UInt64 = 0
        var best = UInt64.max
        let batches = pages > 11 ? 300 : 20_000
        for batch in 0..<batches {
          for index in 0..<32 as Range<UInt32> {
            let sector = generator.next() % (size / 4096 - UInt64(pages)) * 8
            let base = first + (index &* UInt32(pages)) % 700
            let segments = (0..<UInt32(pages)).map { page(base + $0 % 256) }
            if pages > 11 {
              _ = frontend.enqueueIndirect(operation, sector: sector, segments, page: list)
            } else {
              _ = frontend.enqueue(operation, sector: sector, segments)
            }
          }
          try frontend.publishRequests()
          let before = MonotonicClock.nanoseconds()
          _ = queue.run()
          let spent = MonotonicClock.nanoseconds() - before
          if batch > 100 {
            total += spent
            best = min(best, spent)
          }
          try frontend.collect()
          frontend.responses.removeAll(keepingCapacity: true)
          frontend.answered.removeAll(keepingCapacity: true)
        }
        print(
          "cost: \(kind) \(operation) \(pages) pages: mean \(total / UInt64(batches - 101) / 32) ns, best \(best / 32) ns per request"
        )
      }
      #expect(frontend.device?.statistics.transientMaps == 0)
    }
  }
}
