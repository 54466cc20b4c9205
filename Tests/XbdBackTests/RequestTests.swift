// SPDX-License-Identifier: Apache-2.0

import Blkif
import Glibc
import Platform
import Testing
import Xen

@testable import XbdBack

@Suite struct RequestTests {
  @Test(arguments: ABI.allCases) func aWriteIsReadBackInEveryLayout(abi: ABI) throws {
    try withBackend(abi: abi) { frontend, backend in
      try frontend.connect(backend, try MemoryStorage(byteCount: 1 << 20))
      let source = frontend.dataPage
      let target = source + 1
      memset(frontend.xen.page(source), 0x5A, Page.size)
      #expect(try frontend.perform(.write, sector: 8, [page(source)]) == 0)
      #expect(try frontend.perform(.read, sector: 8, [page(target)]) == 0)
      #expect(memcmp(frontend.xen.page(source), frontend.xen.page(target), Page.size) == 0)
    }
  }

  @Test func aQueueWithItsOwnThreadAnswersAndNotifies() throws {
    try withBackend { frontend, backend in
      try frontend.connect(backend, try MemoryStorage(byteCount: 1 << 20), BackendConfiguration())
      memset(frontend.xen.page(frontend.dataPage), 0x5A, Page.size)
      for round in 0..<100 {
        #expect(try frontend.perform(.write, sector: UInt64(round), [page(frontend.dataPage)]) == 0)
      }
      let statistics = try #require(frontend.device?.statistics)
      #expect(statistics.writes == 100)
      #expect(statistics.notificationsSent >= 1)
    }
  }
}
