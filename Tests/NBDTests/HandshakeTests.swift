// SPDX-License-Identifier: Apache-2.0

import NBDTestSupport
import Testing

@testable import NBD

/// The handshake without any socket: bytes in, bytes and an ending out.
@Suite struct HandshakeTests {
  /// What a whole conversation came to.
  struct Outcome: Equatable {
    var sent: [UInt8] = []
    var session: NegotiatedSession?
    var isClosed = false
    /// Bytes that were left for the transmission phase.
    var rest: [UInt8] = []
  }

  static let geometry = TargetGeometry(
    byteCount: 1 << 30, sectorSize: 512, preferredSize: 4096, isReadOnly: false, canFlush: true,
    canTrim: true,
    canFastZero: true)

  /// Feeds bytes in pieces of at most `step`.
  static func feed(_ bytes: [UInt8], step: Int, isStopping: Bool = false) -> Outcome {
    var handshake = Handshake(export: Export(name: "disk", description: "A disk"))
    var outcome = Outcome()
    var position = 0
    var available = 0
    while true {
      let input = Array(bytes[position..<available])
      let (consumed, action) = handshake.receive(input.span, geometry: geometry, isStopping: isStopping)
      position += consumed
      switch action {
      case .none:
        if consumed > 0 { continue }
        if available == bytes.count { return outcome }
        available = min(available + step, bytes.count)
      case .send(let reply): outcome.sent += reply
      case .transmit(let reply, let session):
        outcome.sent += reply
        outcome.session = session
        outcome.rest = Array(bytes[position...])
        return outcome
      case .close(let reply):
        outcome.sent += reply
        outcome.isClosed = true
        return outcome
      }
    }
  }

  static func talk(_ options: [(UInt32, [UInt8])], flags: UInt32 = 3) -> [UInt8] {
    var bytes: [UInt8] = []
    bytes.appendBigEndian(flags)
    for (option, data) in options { bytes += TestClient.option(option, data) }
    return bytes
  }

  /// The types of the replies in what was sent.
  static func types(_ bytes: [UInt8]) -> [UInt32] {
    var reader = ByteReader(bytes[...])
    var types: [UInt32] = []
    while reader.integer(UInt64.self) == NBDMagic.optionReply, reader.integer(UInt32.self) != nil,
      let type = reader.integer(UInt32.self), let length = reader.integer(UInt32.self),
      reader.bytes(length) != nil
    {
      types.append(type)
    }
    return types
  }

  struct Case: CustomTestStringConvertible, Sendable {
    var name: String
    var options: [(UInt32, [UInt8])]
    var replies: [UInt32]
    var testDescription: String { name }

    init(_ name: String, _ options: [(UInt32, [UInt8])], _ replies: [UInt32]) {
      self.name = name
      self.options = options
      self.replies = replies
    }
  }

  static let ack = NBDOptionReply.ack
  static let invalid = NBDOptionReply.errorInvalid
  static let cases: [Case] = [
    Case("LIST names the export", [(NBDOption.list, [])], [NBDOptionReply.server, ack]),
    Case("LIST with data is invalid", [(NBDOption.list, [0])], [invalid]),
    Case("STARTTLS is refused by policy", [(NBDOption.startTLS, [])], [NBDOptionReply.errorPolicy]),
    Case("STARTTLS with data is invalid", [(NBDOption.startTLS, [1])], [invalid]),
    Case("an unknown option is unsupported", [(77, [1, 2, 3])], [NBDOptionReply.errorUnsupported]),
    Case("PEEK_EXPORT is unsupported", [(4, [])], [NBDOptionReply.errorUnsupported]),
    Case("STRUCTURED_REPLY is agreed to", [(NBDOption.structuredReply, [])], [ack]),
    Case("STRUCTURED_REPLY with data is invalid", [(NBDOption.structuredReply, [0])], [invalid]),
    Case("EXTENDED_HEADERS is agreed to", [(NBDOption.extendedHeaders, [])], [ack]),
    Case("EXTENDED_HEADERS with data is invalid", [(NBDOption.extendedHeaders, [0])], [invalid]),
    Case(
      "structured replies cannot follow extended headers",
      [(NBDOption.extendedHeaders, []), (NBDOption.structuredReply, [])],
      [ack, NBDOptionReply.errorExtendedHeadersRequired]),
    Case("INFO for the named export", [(NBDOption.info, TestClient.go("disk"))], [NBDOptionReply.info, ack]),
    Case("INFO for the default export", [(NBDOption.info, TestClient.go(""))], [NBDOptionReply.info, ack]),
    Case(
      "INFO for another export is unknown", [(NBDOption.info, TestClient.go("disc"))],
      [NBDOptionReply.errorUnknown]),
    Case(
      "GO for another export is unknown", [(NBDOption.go, TestClient.go("disk2"))],
      [NBDOptionReply.errorUnknown]),
    Case(
      "INFO gives all four kinds", [(NBDOption.info, TestClient.go("", [3, 1, 2, 0, 99]))],
      [NBDOptionReply.info, NBDOptionReply.info, NBDOptionReply.info, NBDOptionReply.info, ack]),
    Case("GO without data is invalid", [(NBDOption.go, [])], [invalid]),
    Case(
      "GO with a name longer than the option is invalid", [(NBDOption.go, [0, 0, 0, 9, 65, 0, 0])], [invalid]),
    Case("GO with a huge name length is invalid", [(NBDOption.go, [255, 255, 255, 255, 0, 0])], [invalid]),
    Case("GO with too few requests is invalid", [(NBDOption.go, [0, 0, 0, 0, 0, 2, 0, 0])], [invalid]),
    Case("GO with trailing bytes is invalid", [(NBDOption.go, TestClient.go("") + [0])], [invalid]),
    Case(
      "SET_META_CONTEXT needs structured replies",
      [(NBDOption.setMetaContext, TestClient.context("", ["base:allocation"]))], [invalid]),
    Case(
      "SET_META_CONTEXT selects base:allocation",
      [
        (NBDOption.structuredReply, []),
        (NBDOption.setMetaContext, TestClient.context("", ["x:y", "base:allocation"])),
      ],
      [ack, NBDOptionReply.metaContext, ack]),
    Case(
      "SET_META_CONTEXT with the wildcard selects nothing",
      [(NBDOption.structuredReply, []), (NBDOption.setMetaContext, TestClient.context("", ["base:"]))],
      [ack, ack]),
    Case(
      "SET_META_CONTEXT without queries selects nothing",
      [(NBDOption.structuredReply, []), (NBDOption.setMetaContext, TestClient.context("", []))], [ack, ack]),
    Case(
      "LIST_META_CONTEXT without queries lists all",
      [(NBDOption.listMetaContext, TestClient.context("disk", []))], [NBDOptionReply.metaContext, ack]),
    Case(
      "LIST_META_CONTEXT understands the wildcard",
      [(NBDOption.listMetaContext, TestClient.context("disk", ["base:"]))], [NBDOptionReply.metaContext, ack]),
    Case(
      "LIST_META_CONTEXT ignores what it does not know",
      [(NBDOption.listMetaContext, TestClient.context("disk", ["qemu:dirty-bitmap:b", "base:other"]))], [ack]),
    Case(
      "LIST_META_CONTEXT for another export is unknown",
      [(NBDOption.listMetaContext, TestClient.context("other", []))], [NBDOptionReply.errorUnknown]),
    Case(
      "a query count beyond the data is invalid",
      [(NBDOption.listMetaContext, TestClient.name("") + [255, 255, 255, 255])], [invalid]),
    Case(
      "a query longer than the data is invalid",
      [(NBDOption.listMetaContext, TestClient.name("") + [0, 0, 0, 1, 0, 0, 1, 0, 65])], [invalid]),
    Case(
      "an option with too much data is skipped",
      [(NBDOption.list, Array(repeating: 1, count: 40_000)), (NBDOption.list, [])],
      [NBDOptionReply.errorTooBig, NBDOptionReply.server, ack]),
  ]

  @Test(arguments: cases) func optionsAreAnsweredAsTheSpecificationSays(_ test: Case) {
    let outcome = Self.feed(Self.talk(test.options), step: 100_000)
    #expect(Self.types(outcome.sent) == test.replies)
    #expect(!outcome.isClosed)
    #expect(outcome.session == nil)
  }

  @Test(arguments: cases) func theHandshakeGoesOnAfterEveryAnswer(_ test: Case) {
    let outcome = Self.feed(Self.talk(test.options + [(NBDOption.go, TestClient.go("disk"))]), step: 100_000)
    #expect(Self.types(outcome.sent) == test.replies + [NBDOptionReply.info, NBDOptionReply.ack])
    #expect(outcome.session != nil)
  }

  @Test(arguments: cases, [1, 3, 17]) func piecesMakeNoDifference(_ test: Case, step: Int) {
    let bytes = Self.talk(test.options + [(NBDOption.go, TestClient.go("disk"))]) + [1, 2, 3]
    #expect(Self.feed(bytes, step: step) == Self.feed(bytes, step: .max / 2))
    #expect(Self.feed(bytes, step: step).rest == [1, 2, 3])
  }

  @Test func exportNameEndsTheHandshakeWithAndWithoutZeroes() {
    let name = Array("disk".utf8)
    let padded = Self.feed(Self.talk([(NBDOption.exportName, name)], flags: 1), step: 1)
    #expect(padded.sent.count == 134)
    let flags = Export().transmissionFlags(Self.geometry, style: .simple, hasContext: false)
    #expect(padded.session == NegotiatedSession(flags: flags))
    let short = Self.feed(Self.talk([(NBDOption.exportName, [])], flags: 3), step: 1)
    #expect(short.sent.count == 10)
    #expect(short.sent.prefix(8) == [0, 0, 0, 0, 64, 0, 0, 0])
  }

  @Test func exportNameThatIsUnknownOrComesAfterExtendedHeadersCloses() {
    #expect(Self.feed(Self.talk([(NBDOption.exportName, [65])]), step: 1).isClosed)
    #expect(
      Self.feed(Self.talk([(NBDOption.exportName, Array(repeating: 65, count: 50_000))]), step: 999).isClosed)
    #expect(
      Self.feed(Self.talk([(NBDOption.extendedHeaders, []), (NBDOption.exportName, [])]), step: 1).isClosed)
  }

  @Test func abortIsAcknowledgedAndCloses() {
    let outcome = Self.feed(Self.talk([(NBDOption.abort, [1, 2])]), step: 5)
    #expect(outcome.isClosed)
    #expect(Self.types(outcome.sent) == [NBDOptionReply.ack])
  }

  @Test(arguments: [4, 7, 0x8000_0003, 0xffff_ffff] as [UInt32])
  func unknownClientFlagsClose(_ flags: UInt32) {
    #expect(Self.feed(Self.talk([(NBDOption.list, [])], flags: flags), step: 2).isClosed)
  }

  @Test func aWrongOptionMagicAndAnEndlessOptionClose() {
    var bytes = Self.talk([(NBDOption.list, [])])
    bytes[6] ^= 1
    #expect(Self.feed(bytes, step: 3).isClosed)
    var endless = Self.talk([])
    endless.appendBigEndian(NBDMagic.option)
    endless.appendBigEndian(NBDOption.list)
    endless.appendBigEndian(UInt32.max)
    #expect(Self.feed(endless, step: 3).isClosed)
  }

  @Test func optionsAreRefusedWhileTheServiceGoesDown() {
    let outcome = Self.feed(
      Self.talk([(NBDOption.go, TestClient.go("")), (NBDOption.abort, [])]), step: 9, isStopping: true)
    #expect(Self.types(outcome.sent) == [NBDOptionReply.errorShutdown, NBDOptionReply.ack])
    #expect(outcome.isClosed && outcome.session == nil)
  }

  // Its client would take an option's reply for the size of the export.
  @Test func exportNameWhileTheServiceGoesDownEndsTheConnectionWithoutAWord() {
    let outcome = Self.feed(Self.talk([(NBDOption.exportName, [])]), step: 9, isStopping: true)
    #expect(outcome.sent.isEmpty)
    #expect(outcome.isClosed && outcome.session == nil)
  }

  @Test func aLaterSelectionReplacesAnEarlierOneEvenWhenItFails() {
    let select = TestClient.context("", ["base:allocation"])
    let go = (NBDOption.go, TestClient.go(""))
    let selected = Self.feed(
      Self.talk([(NBDOption.structuredReply, []), (NBDOption.setMetaContext, select), go]), step: 1)
    #expect(selected.session?.hasAllocationContext == true)
    let replaced = Self.feed(
      Self.talk([
        (NBDOption.structuredReply, []), (NBDOption.setMetaContext, select), (NBDOption.setMetaContext, [1]),
        go,
      ]), step: 1)
    #expect(replaced.session?.hasAllocationContext == false)
  }

  @Test func transmissionFlagsSayWhatTheDeviceCanDo() {
    var poor = Self.geometry
    poor.canFlush = false
    poor.canTrim = false
    let none = Export().transmissionFlags(poor, style: .simple, hasContext: false)
    #expect(none == [.hasFlags, .canMultiConn, .sendCache, .sendWriteZeroes, .sendFastZero])
    let readOnly = Export(isReadOnly: true).transmissionFlags(
      Self.geometry, style: .structured, hasContext: true)
    #expect(readOnly == [.hasFlags, .readOnly, .canMultiConn, .sendCache, .sendFlush, .sendFUA, .sendDF])
    let all = Export().transmissionFlags(Self.geometry, style: .extended, hasContext: true)
    #expect(all.isSuperset(of: [.sendTrim, .blockStatusPayload, .sendDF]))
    #expect(!all.contains(.readOnly))
  }

  @Test(arguments: 0..<40) func rubbishNeverTrapsAndPiecesStillMakeNoDifference(seed: Int) {
    var random = SeededGenerator(seed: UInt64(seed + 1))
    let sane = Self.talk([
      (NBDOption.structuredReply, []), (NBDOption.list, []),
      (NBDOption.info, TestClient.go("disk", [1, 2, 3])),
      (NBDOption.setMetaContext, TestClient.context("disk", ["base:allocation"])),
      (NBDOption.go, TestClient.go("")),
    ])
    for position in sane.indices {
      var bytes = sane
      bytes[position] = UInt8.random(in: 0...255, using: &random)
      #expect(Self.feed(bytes, step: 1) == Self.feed(bytes, step: .max / 2))
    }
    let noise = (0..<500).map { _ in UInt8.random(in: 0...255, using: &random) }
    #expect(Self.feed([0, 0, 0, 3] + noise, step: 7) == Self.feed([0, 0, 0, 3] + noise, step: 500))
  }
}
