// SPDX-License-Identifier: Apache-2.0

import NBDTestSupport
import Platform
import Testing

@testable import NBD

/// Random requests of concurrent clients, checked byte for byte against an array.
@Suite struct ModelTests {
  /// One client's requests in flight and what its part of the disk must hold.
  private struct Model {
    var bytes: [UInt8]
    /// Ranges in flight, by cookie, and what a read of them must give.
    var pending: [UInt64: (range: Range<Int>, expected: [UInt8]?)] = [:]
  }

  private static func run(_ worker: Worker, style: ReplyStyle, base: Int, length: Int, seed: UInt64) throws {
    var random = SeededGenerator(seed: seed)
    let client = try TestClient(worker, style)
    var model = Model(bytes: Array(repeating: 0, count: length))
    for cookie: UInt64 in 1...1500 {
      while model.pending.count >= 16 { try settle(client, &model) }
      let largest = Int.random(in: 0..<12, using: &random) == 0 ? length : 20_000
      let count = Int.random(in: 1...min(largest, length), using: &random)
      let start = Int.random(in: 0...(length - count), using: &random)
      let range = start..<(start + count)
      // Requests in flight may be done in any order, so those that overlap wait for each other.
      while model.pending.values.contains(where: { $0.range.overlaps(range) }) { try settle(client, &model) }
      let offset = UInt64(base + start)
      switch Int.random(in: 0..<10, using: &random) {
      case 0..<4:
        let bytes = pattern(count, seed: UInt8(truncatingIfNeeded: cookie))
        model.bytes.replaceSubrange(range, with: bytes)
        model.pending[cookie] = (range, nil)
        try client.post(
          NBDCommand.write, cookie: cookie, offset: offset, length: UInt64(count), payload: bytes)
      case 4:
        model.bytes.replaceSubrange(range, with: repeatElement(0, count: count))
        model.pending[cookie] = (range, nil)
        try client.post(NBDCommand.writeZeroes, cookie: cookie, offset: offset, length: UInt64(count))
      default:
        model.pending[cookie] = (range, Array(model.bytes[range]))
        try client.post(NBDCommand.read, cookie: cookie, offset: offset, length: UInt64(count))
      }
    }
    while !model.pending.isEmpty { try settle(client, &model) }
    guard try client.read(UInt64(base), length).data == model.bytes else {
      throw ClientError.unexpected("the disk differs from the model, seed \(seed)")
    }
  }

  private static func settle(_ client: TestClient, _ model: inout Model) throws {
    let reply = try client.reply()
    guard let pending = model.pending.removeValue(forKey: reply.cookie), reply.error == 0 else {
      throw ClientError.unexpected("reply \(reply.cookie), error \(reply.error)")
    }
    if let expected = pending.expected, expected != reply.data {
      throw ClientError.unexpected("wrong bytes in \(pending.range)")
    }
  }

  @Test(arguments: [MemoryTarget.Order.inOrder, .reversed], [60, 16_384])
  func concurrentClientsReadWhatTheyWrote(order: MemoryTarget.Order, pageCount: Int) throws {
    let length = 200_000
    let service = try Service(byteCount: 1 << 20, pageCount: pageCount, order: order)
    let worker = service.worker
    try concurrently(4) { index in
      try Self.run(
        worker, style: allStyles[index % 3], base: index * length, length: length, seed: UInt64(index + 1))
    }
    #expect(eventually { service.disk.outstandingCount == 0 })
  }
}
