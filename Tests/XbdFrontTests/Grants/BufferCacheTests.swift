// SPDX-License-Identifier: Apache-2.0

import Glibc
import Testing

@testable import XbdFront

@Suite struct BufferCacheTests {
  @Test(arguments: [1, 511, 4096, 4097, 8192, 131072, 131073, 4 << 20, 64 << 20])
  func aBufferHoldsWhatWasAskedForAndIsUsedAgain(byteCount: Int) throws {
    var cache = BufferCache()
    let bufferTaken = cache.take(byteCount)
    let buffer = try #require(bufferTaken)
    #expect(buffer.byteCount >= byteCount)
    memset(buffer.address, 1, buffer.byteCount)
    #expect(UInt(bitPattern: buffer.address) % 4096 == 0)
    cache.put(buffer)
    let againTaken = cache.take(byteCount)
    let again = try #require(againTaken)
    if byteCount <= 4 << 20 { #expect(again.address == buffer.address) }
    cache.put(again)
  }

  @Test func whatIsTooLargeIsRefused() {
    var cache = BufferCache()
    let isRefused = cache.take(256 << 20) == nil
    #expect(isRefused)
  }
}
