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
    memset(buffer, 1, byteCount)
    #expect(UInt(bitPattern: buffer) % 4096 == 0)
    cache.put(buffer, byteCount)
    let againTaken = cache.take(byteCount)
    let again = try #require(againTaken)
    if byteCount <= 4 << 20 { #expect(again == buffer) }
    cache.put(again, byteCount)
  }

  @Test func whatIsTooLargeIsRefused() {
    var cache = BufferCache()
    let none = cache.take(256 << 20)
    #expect(none == nil)
  }
}
