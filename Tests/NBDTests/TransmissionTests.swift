// SPDX-License-Identifier: Apache-2.0

import NBDTestSupport
import Testing

@testable import NBD

/// Requests and their answers, one row of the protocol at a time, in all three styles.
@Suite struct TransmissionTests {
  static let size: UInt64 = 1 << 20

  struct Refusal: CustomTestStringConvertible, Sendable {
    var name: String
    var command: UInt16
    var flags: UInt16 = 0
    var offset: UInt64 = 0
    var length: UInt64 = 512
    var error: UInt32
    var testDescription: String { name }
  }

  static let refusals: [Refusal] = [
    Refusal(name: "read past the end", command: NBDCommand.read, offset: size - 511, error: NBDError.invalid),
    Refusal(
      name: "write past the end", command: NBDCommand.write, offset: size - 511, error: NBDError.noSpace),
    Refusal(
      name: "write zeroes past the end", command: NBDCommand.writeZeroes, offset: size,
      error: NBDError.noSpace),
    Refusal(name: "trim past the end", command: NBDCommand.trim, offset: size, error: NBDError.invalid),
    Refusal(name: "cache past the end", command: NBDCommand.cache, offset: size, error: NBDError.invalid),
    Refusal(
      name: "read whose end overflows", command: NBDCommand.read, offset: .max - 5, error: NBDError.invalid),
    Refusal(
      name: "write whose end overflows", command: NBDCommand.write, offset: .max - 5, error: NBDError.invalid),
    Refusal(
      name: "zeroes whose end overflows", command: NBDCommand.writeZeroes, offset: .max,
      error: NBDError.invalid),
    Refusal(name: "unknown flag on read", command: NBDCommand.read, flags: 1 << 9, error: NBDError.invalid),
    Refusal(
      name: "unknown flag on write", command: NBDCommand.write, flags: 1 << 15, error: NBDError.invalid),
    Refusal(
      name: "REQ_ONE on trim", command: NBDCommand.trim, flags: NBDCommandFlag.reqOne, error: NBDError.invalid
    ),
    Refusal(
      name: "NO_HOLE on write", command: NBDCommand.write, flags: NBDCommandFlag.noHole,
      error: NBDError.invalid),
    Refusal(name: "unknown flag on cache", command: NBDCommand.cache, flags: 1 << 1, error: NBDError.invalid),
    Refusal(name: "unknown command", command: 99, error: NBDError.invalid),
    Refusal(name: "flush with a range", command: NBDCommand.flush, error: NBDError.invalid),
  ]

  @Test(arguments: refusals, allStyles)
  func refusedRequestsGetTheirErrorAndTheConnectionGoesOn(_ refusal: Refusal, style: ReplyStyle) throws {
    let service = try Service()
    let client = try TestClient(service.worker, style)
    let payload = refusal.command == NBDCommand.write ? pattern(Int(refusal.length)) : []
    let reply = try client.call(
      refusal.command, flags: refusal.flags, cookie: 7, offset: refusal.offset, length: refusal.length,
      payload: payload)
    #expect(reply == Reply(cookie: 7, error: refusal.error))
    #expect(try client.read(0, 512) == Reply(cookie: 1, data: Array(repeating: 0, count: 512)))
    #expect(service.disk.bytes.allSatisfy { $0 == 0 })
  }

  @Test(arguments: allStyles) func whatIsWrittenIsRead(style: ReplyStyle) throws {
    let service = try Service()
    let client = try TestClient(service.worker, style)
    for (offset, count) in [(0, 512), (1, 1), (4095, 2), (100, 70_000), (1 << 20 - 1, 1), (0, 1 << 20)] {
      let bytes = pattern(count, seed: UInt8(truncatingIfNeeded: offset))
      #expect(try client.write(UInt64(offset), bytes).error == 0)
      #expect(try client.read(UInt64(offset), count).data == bytes)
      #expect(service.disk.bytes[offset..<(offset + count)].elementsEqual(bytes))
    }
  }

  @Test(arguments: allStyles, [32 << 10, 32 << 10 | 1, 3 << 20, 32 << 20])
  func requestsUpTo32MiBWork(style: ReplyStyle, count: Int) throws {
    let service = try Service(byteCount: 40 << 20)
    let client = try TestClient(service.worker, style)
    let bytes = pattern(count)
    #expect(try client.write(12_345, bytes).error == 0)
    #expect(try client.read(12_345, count).data == bytes)
  }

  @Test(arguments: allStyles) func oversizeRequestsAreRefusedAndTheConnectionGoesOn(style: ReplyStyle) throws
  {
    let service = try Service(byteCount: 64 << 20)
    let client = try TestClient(service.worker, style)
    let count = 32 << 20 | 1
    let read = try client.read(0, count)
    #expect(read.error == (style == .simple ? NBDError.invalid : NBDError.overflow))
    #expect(try client.write(0, Array(repeating: 9, count: count)).error == NBDError.invalid)
    #expect(try client.read(0, 4096).data.allSatisfy { $0 == 0 })
    #expect(service.worker.statistics()[.bytesCopied] == 0)
  }

  @Test(arguments: allStyles) func requestsForNoBytesSucceed(style: ReplyStyle) throws {
    let service = try Service()
    let client = try TestClient(service.worker, style)
    for command in [NBDCommand.read, NBDCommand.trim, NBDCommand.writeZeroes, NBDCommand.cache] {
      #expect(try client.call(command, offset: 5, length: 0) == Reply(cookie: 1))
    }
    if style != .extended { #expect(try client.write(0, []) == Reply(cookie: 1)) }
  }

  @Test(arguments: allStyles) func zeroesTrimsAndCachesWork(style: ReplyStyle) throws {
    let service = try Service()
    let client = try TestClient(service.worker, style)
    #expect(try client.write(0, pattern(8192)).error == 0)
    #expect(
      try client.call(NBDCommand.writeZeroes, flags: NBDCommandFlag.noHole, offset: 10, length: 100).error
        == 0)
    #expect(service.disk.bytes[10..<110].allSatisfy { $0 == 0 })
    #expect(
      try client.call(NBDCommand.writeZeroes, flags: NBDCommandFlag.fastZero, offset: 0, length: 4096).error
        == 0)
    #expect(try client.call(NBDCommand.trim, offset: 4096, length: 4096).error == 0)
    #expect(try client.call(NBDCommand.cache, offset: 0, length: 4096).error == 0)
    #expect(service.disk.bytes.allSatisfy { $0 == 0 })
  }

  @Test(arguments: allStyles) func fuaReachesTheTargetAndFlushIsPerformed(style: ReplyStyle) throws {
    let service = try Service()
    let client = try TestClient(service.worker, style)
    for command in [NBDCommand.trim, NBDCommand.writeZeroes] {
      #expect(try client.call(command, flags: NBDCommandFlag.fua, length: 512).error == 0)
    }
    #expect(try client.write(0, [1], flags: NBDCommandFlag.fua).error == 0)
    #expect(service.disk.durableCount == 3)
    #expect(try client.call(NBDCommand.flush).error == 0)
    #expect(service.disk.flushCount == 1)
  }

  @Test(arguments: allStyles) func aTargetWithoutFlushGetsNeitherFlushNorFUA(style: ReplyStyle) throws {
    let service = try Service(geometry: {
      $0.canFlush = false
      $0.canTrim = false
      $0.canFastZero = false
    })
    let client = try TestClient(service.worker, style)
    #expect(client.transmissionFlags.isDisjoint(with: [.sendFlush, .sendFUA, .sendTrim]))
    #expect(try client.call(NBDCommand.flush).error == NBDError.invalid)
    #expect(try client.write(0, [1], flags: NBDCommandFlag.fua).error == NBDError.invalid)
    #expect(try client.call(NBDCommand.trim, length: 512).error == NBDError.invalid)
    let fast = try client.call(NBDCommand.writeZeroes, flags: NBDCommandFlag.fastZero, length: 512)
    #expect(fast.error == NBDError.notSupported)
    #expect(try client.call(NBDCommand.writeZeroes, length: 512).error == 0)
  }

  /// A backend that came after a dead one may be poorer.
  @Test(arguments: allStyles) func whatWasPromisedAndIsGoneIsNotSupported(style: ReplyStyle) throws {
    let service = try Service()
    let client = try TestClient(service.worker, style)
    #expect(client.transmissionFlags.isSuperset(of: [.sendFlush, .sendFUA, .sendTrim]))
    #expect(try client.call(NBDCommand.flush).error == 0)
    service.disk.losesFeatures()
    #expect(try client.call(NBDCommand.flush).error == NBDError.notSupported)
    #expect(try client.call(NBDCommand.trim, length: 512).error == NBDError.notSupported)
    for size in [1, 5000, 100_000] {
      let refused = try client.write(0, pattern(size), flags: NBDCommandFlag.fua)
      #expect(refused.error == NBDError.notSupported)
    }
    let zeroes = try client.call(NBDCommand.writeZeroes, flags: NBDCommandFlag.fua, length: 512)
    #expect(zeroes.error == NBDError.notSupported)
    #expect(service.disk.bytes.allSatisfy { $0 == 0 })
    // Nothing has to be made durable for a read, and what needs nothing that is gone works.
    #expect(try client.call(NBDCommand.read, flags: NBDCommandFlag.fua, length: 512).error == 0)
    #expect(try client.write(0, pattern(4096)).error == 0)
    // Who comes now was promised nothing.
    let next = try TestClient(service.worker, style)
    #expect(next.transmissionFlags.isDisjoint(with: [.sendFlush, .sendFUA, .sendTrim]))
    #expect(try next.call(NBDCommand.flush).error == NBDError.invalid)
    #expect(try next.write(0, [1], flags: NBDCommandFlag.fua).error == NBDError.invalid)
  }

  @Test(arguments: allStyles, [true, false])
  func aReadOnlyExportRefusesEveryKindOfWrite(style: ReplyStyle, byTarget: Bool) throws {
    let service = try Service(
      export: Export(isReadOnly: !byTarget), geometry: { $0.isReadOnly = byTarget })
    let client = try TestClient(service.worker, style)
    #expect(client.transmissionFlags.contains(.readOnly))
    #expect(try client.write(0, pattern(4096)).error == NBDError.notPermitted)
    #expect(try client.write(0, pattern(100_000)).error == NBDError.notPermitted)
    #expect(try client.call(NBDCommand.trim, length: 512).error == NBDError.notPermitted)
    #expect(try client.call(NBDCommand.writeZeroes, length: 512).error == NBDError.notPermitted)
    #expect(try client.read(0, 512).error == 0)
  }

  @Test(arguments: allStyles) func theTargetsFailuresBecomeTheProtocolsErrors(style: ReplyStyle) throws {
    let service = try Service()
    let client = try TestClient(service.worker, style)
    let expected: [(TargetStatus, UInt32)] = [
      (.ioError, NBDError.io), (.notSupported, NBDError.notSupported), (.readOnly, NBDError.notPermitted),
      (.noSpace, NBDError.noSpace), (.shutdown, NBDError.shutdown),
    ]
    for (status, error) in expected {
      service.disk.fail(with: status)
      #expect(try client.read(0, 4096) == Reply(cookie: 1, error: error))
      #expect(try client.write(0, pattern(4096)) == Reply(cookie: 1, error: error))
      #expect(try client.write(0, pattern(100_000)) == Reply(cookie: 1, error: error))
      #expect(try client.call(NBDCommand.flush) == Reply(cookie: 1, error: error))
    }
    service.disk.fail(with: nil)
    #expect(try client.read(0, 4096).error == 0)
    // The memory of a read is given back when its reply has left, which the client may see first.
    #expect(eventually { service.disk.outstandingCount == 0 })
  }

  @Test(arguments: [ReplyStyle.structured, .extended])
  func blockStatusSaysThatAllIsData(style: ReplyStyle) throws {
    let service = try Service()
    let client = try TestClient(service.worker, style)
    let one = try client.call(NBDCommand.blockStatus, flags: NBDCommandFlag.reqOne, offset: 512, length: 1024)
    #expect(one == Reply(cookie: 1, extents: [(1024, 0)]))
    let all = try client.call(NBDCommand.blockStatus, offset: 512, length: 1024)
    #expect(all == Reply(cookie: 1, extents: [(Self.size - 512, 0)]))
    #expect(try client.call(NBDCommand.blockStatus, offset: 512, length: Self.size).error == NBDError.invalid)
  }

  @Test(arguments: allStyles) func blockStatusWithoutAContextIsInvalid(style: ReplyStyle) throws {
    let service = try Service()
    let client = try TestClient(service.worker, style, context: false)
    #expect(try client.call(NBDCommand.blockStatus, length: 512).error == NBDError.invalid)
    #expect(!client.transmissionFlags.contains(.blockStatusPayload))
  }

  @Test func blockStatusCanBeAskedForByContext() throws {
    let service = try Service()
    let client = try TestClient(service.worker, .extended)
    #expect(client.transmissionFlags.contains(.blockStatusPayload))
    var payload: [UInt8] = []
    payload.appendBigEndian(UInt64(4096))
    payload.appendBigEndian(NBDMetaContext.allocationID)
    let flags = NBDCommandFlag.reqOne
    let good = try client.call(NBDCommand.blockStatus, flags: flags, length: 12, payload: payload)
    #expect(good == Reply(cookie: 1, extents: [(4096, 0)]))
    let unknown: [UInt8] = payload.dropLast(4) + [0, 0, 0, 9]
    for bad in [payload + [0, 0, 0, 1], unknown, [UInt8](repeating: 0, count: 9000)] {
      let reply = try client.call(NBDCommand.blockStatus, length: UInt64(bad.count), payload: bad)
      #expect(reply == Reply(cookie: 1, error: NBDError.invalid))
    }
    #expect(try client.read(0, 1).error == 0)
  }

  @Test func extendedHeadersCarry64BitLengths() throws {
    let service = try Service(byteCount: 6 << 30)
    let client = try TestClient(service.worker, .extended)
    service.disk.fail(with: .noSpace)
    // Six gigabytes in one request: that it reaches the target is what counts here.
    #expect(try client.call(NBDCommand.trim, length: 6 << 30).error == NBDError.noSpace)
    #expect(try client.call(NBDCommand.trim, length: 6 << 30 | 1).error == NBDError.invalid)
    let status = try client.call(NBDCommand.blockStatus, flags: NBDCommandFlag.reqOne, length: 5 << 30)
    #expect(status.extents.elementsEqual([(5 << 30, 0)]) { $0 == $1 })
  }

  @Test func extendedHeadersInsistOnThePayloadFlag() throws {
    let service = try Service()
    let client = try TestClient(service.worker, .extended)
    // A write without the flag has no payload, a read with it has one.
    #expect(try client.call(NBDCommand.write, length: 512).error == NBDError.invalid)
    #expect(try client.call(NBDCommand.read, length: 100, payload: pattern(100)).error == NBDError.invalid)
    #expect(try client.read(0, 512).error == 0)
    try client.send(
      client.encode(NBDCommand.write, flags: NBDCommandFlag.payloadLength, length: 1 << 33))
    try client.waitForClose()
  }

  @Test func a32BitBlockStatusIsCutToItsField() throws {
    let service = try Service(byteCount: 6 << 30)
    let client = try TestClient(service.worker, .structured)
    let reply = try client.call(NBDCommand.blockStatus, length: 4096)
    #expect(reply.extents.count == 1)
    #expect(reply.extents.first.map { $0.0 <= UInt64(UInt32.max) && $0.0 % 4096 == 0 } == true)
  }

  @Test(arguments: [ReplyStyle.structured, .extended])
  func aReadThatMustNotBeFragmentedIsNot(style: ReplyStyle) throws {
    let service = try Service()
    let client = try TestClient(service.worker, style)
    #expect(client.transmissionFlags.contains(.sendDF))
    #expect(try client.read(0, 65_536, flags: NBDCommandFlag.dontFragment).data.count == 65_536)
  }

  @Test(arguments: allStyles) func aWrongRequestMagicCloses(style: ReplyStyle) throws {
    let service = try Service()
    let client = try TestClient(service.worker, style)
    try client.send(client.encode(NBDCommand.read, length: 512, magic: 0x1234_5678))
    try client.waitForClose()
    #expect(try TestClient(service.worker, style).read(0, 1).error == 0)
  }

  @Test(arguments: allStyles) func disconnectAnswersWhatIsInFlightAndThenCloses(style: ReplyStyle) throws {
    let service = try Service()
    let client = try TestClient(service.worker, style)
    service.disk.hold()
    try client.post(NBDCommand.read, cookie: 5, length: 4096)
    try client.post(NBDCommand.disconnect, cookie: 6)
    #expect(eventually { service.worker.statistics()[.disconnects] == 1 })
    service.disk.letGo()
    #expect(try client.reply().cookie == 5)
    try client.waitForClose()
  }

  @Test(arguments: allStyles) func replyHeaderLengthsAreWhatIsEncoded(style: ReplyStyle) {
    var scratch = [UInt8](repeating: 0, count: NBDWire.longestReply)
    for reply in [ReplyKind.status, .data, .blockStatus] {
      for error in [NBDError.none, NBDError.io] where reply == .status || error == NBDError.none {
        for isRead in [true, false] {
          if style == .simple && reply == .blockStatus { continue }
          var slot = RequestSlot()
          slot.reply = reply
          slot.error = error
          slot.isRead = isRead
          var span = scratch.mutableSpan
          var bytes = span.mutableBytes
          let length = slot.encodeHeader(into: &bytes, style: style)
          #expect(length == slot.headerLength(style: style))
        }
      }
    }
  }
}
