// SPDX-License-Identifier: Apache-2.0

import Glibc
import NBDTestSupport
import Testing

@testable import NBD

/// Many requests at a time are answered in parts, and none is lost or changed by where a part ends.
@Suite struct DeepQueueTests {
  @Test(.enabled(if: sysconf(Int32(_SC_NPROCESSORS_ONLN)) > 1)) func manyRequestsAreTakenInParts() throws {
    let service = try Service()
    let client = try TestClient(service.worker, .structured)
    let depth = 32
    let burst = (0..<depth).flatMap { client.encode(NBDCommand.read, cookie: UInt64($0), length: 512) }
    let before = service.worker.statistics()[.receives]
    // What is first guessed lasts for some 12 ms at least.
    for _ in 0..<60 {
      try client.send(burst)
      for _ in 0..<depth { #expect(try client.reply().error == 0) }
    }
    // One for each burst, but for those that were taken in parts.
    #expect(service.worker.statistics()[.receives] - before > 60 + 4)
  }

  @Test func partsOfRequestsOfManySizesAreTheSameAsAllAtOnce() throws {
    let service = try Service()
    let client = try TestClient(service.worker, .structured)
    var generator = SeededGenerator(seed: 7)
    var model = [UInt8](repeating: 0, count: 1 << 20)
    let area = (1 << 20) / 32
    for round in 0..<100 {
      var requests: [UInt8] = []
      var expected: [UInt64: [UInt8]] = [:]
      for slot in 0..<32 {
        // A place of its own for each, so that their order does not matter.
        let count = 512 * Int.random(in: 1...(slot % 8 == 0 ? 64 : 8), using: &generator)
        let offset = slot * area
        if Bool.random(using: &generator) {
          let bytes = pattern(count, seed: UInt8(truncatingIfNeeded: round &+ slot))
          model.replaceSubrange(offset..<offset + count, with: bytes)
          requests += client.encode(
            NBDCommand.write, cookie: UInt64(slot), offset: UInt64(offset), length: UInt64(count),
            payload: bytes)
          expected[UInt64(slot)] = []
        } else {
          requests += client.encode(
            NBDCommand.read, cookie: UInt64(slot), offset: UInt64(offset), length: UInt64(count))
          expected[UInt64(slot)] = Array(model[offset..<offset + count])
        }
      }
      try client.send(requests)
      for _ in 0..<32 {
        let reply = try client.reply()
        #expect(reply.error == 0 && reply.data == expected.removeValue(forKey: reply.cookie))
      }
    }
  }
}
