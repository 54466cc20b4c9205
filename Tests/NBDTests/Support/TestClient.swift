// SPDX-License-Identifier: Apache-2.0
//
// A small NBD client for tests: speaks all three styles, checks what it gets, and can send anything at all. Every
// wait is bounded, so that a server that hangs fails a test instead of stopping it.

import CXen
import Glibc
import Platform
import Testing

@testable import NBD

/// What went wrong on the client's side of a connection.
enum ClientError: Error, Equatable {
  case closed
  case timedOut
  case unexpected(String)
}

/// One answer in the transmission phase.
struct Reply: Equatable {
  var cookie: UInt64
  var error: UInt32 = 0
  var data: [UInt8] = []
  /// Extents of a block status: length and flags.
  var extents: [(UInt64, UInt64)] = []

  static func == (left: Reply, right: Reply) -> Bool {
    left.cookie == right.cookie && left.error == right.error && left.data == right.data
      && left.extents.elementsEqual(right.extents) { $0 == $1 }
  }
}

/// One client connection.
final class TestClient {
  let descriptor: OwnedDescriptor
  private(set) var style = ReplyStyle.simple
  /// Set by the handshake.
  private(set) var exportSize: UInt64 = 0
  private(set) var transmissionFlags = NBDTransmissionFlags(rawValue: 0)
  /// How long each reply to a read is, for simple replies, which do not say.
  private var readLengths: [UInt64: Int] = [:]

  init(_ descriptor: consuming OwnedDescriptor) {
    self.descriptor = descriptor
    var limit = timeval(tv_sec: 30, tv_usec: 0)
    setsockopt(
      self.descriptor.raw, SOL_SOCKET, SO_RCVTIMEO, &limit, socklen_t(MemoryLayout<timeval>.size))
    setsockopt(
      self.descriptor.raw, SOL_SOCKET, SO_SNDTIMEO, &limit, socklen_t(MemoryLayout<timeval>.size))
  }

  /// Connects to a worker over a socket pair.
  convenience init(_ worker: Worker) throws {
    var pair: [Int32] = [-1, -1]
    let code = socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0, &pair)
    guard code == 0 else { throw ClientError.unexpected("socketpair") }
    worker.adopt(OwnedDescriptor(pair[1]))
    self.init(OwnedDescriptor(pair[0]))
  }

  /// Connects and negotiates.
  convenience init(
    _ worker: Worker, _ style: ReplyStyle, context: Bool = true, export: String = ""
  ) throws {
    try self.init(worker)
    try negotiate(style, context: context, export: export)
  }

  // MARK: bytes

  func send(_ bytes: [UInt8]) throws {
    var done = 0
    while done < bytes.count {
      let sent = bytes.withUnsafeBytes {
        Glibc.send(descriptor.raw, $0.baseAddress.map { $0 + done }, bytes.count - done, Int32(MSG_NOSIGNAL))
      }
      guard sent > 0 else { throw sent < 0 && errno == EAGAIN ? ClientError.timedOut : ClientError.closed }
      done += sent
    }
  }

  func receive(_ count: Int) throws -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: count)
    var done = 0
    while done < count {
      let received = bytes.withUnsafeMutableBytes {
        Glibc.recv(descriptor.raw, $0.baseAddress.map { $0 + done }, count - done, 0)
      }
      if received == 0 { throw ClientError.closed }
      if received < 0 { throw errno == EAGAIN ? ClientError.timedOut : ClientError.closed }
      done += received
    }
    return bytes
  }

  /// Waits until the server closes, dropping what it still sends.
  func waitForClose() throws {
    while true {
      do { _ = try receive(1) } catch ClientError.closed { return }
    }
  }

  /// Sends nothing more; still listens.
  func closeSending() { shutdown(descriptor.raw, Int32(SHUT_WR)) }

  private func integer<Value: FixedWidthInteger & UnsignedInteger>(_ type: Value.Type) throws -> Value {
    try receive(Value.bitWidth / 8).reduce(Value(0)) { $0 << 8 | Value($1) }
  }

  // MARK: handshake

  func greet(flags: UInt32 = 3) throws {
    let greeting = try receive(18)
    guard greeting == Handshake.greeting else { throw ClientError.unexpected("greeting") }
    var bytes: [UInt8] = []
    bytes.appendBigEndian(flags)
    try send(bytes)
  }

  static func option(_ option: UInt32, _ data: [UInt8] = []) -> [UInt8] {
    var bytes: [UInt8] = []
    bytes.appendBigEndian(NBDMagic.option)
    bytes.appendBigEndian(option)
    bytes.appendBigEndian(UInt32(data.count))
    return bytes + data
  }

  /// Replies to one option, up to the last.
  func optionReplies(_ option: UInt32) throws -> [(type: UInt32, data: [UInt8])] {
    var replies: [(UInt32, [UInt8])] = []
    while true {
      guard try integer(UInt64.self) == NBDMagic.optionReply, try integer(UInt32.self) == option else {
        throw ClientError.unexpected("option reply")
      }
      let type = try integer(UInt32.self)
      let data = try receive(Int(try integer(UInt32.self)))
      replies.append((type, data))
      if type == NBDOptionReply.ack || type & 1 << 31 != 0 { return replies }
    }
  }

  static func name(_ text: String) -> [UInt8] {
    var bytes: [UInt8] = []
    bytes.appendBigEndian(UInt32(text.utf8.count))
    return bytes + Array(text.utf8)
  }

  static func go(_ export: String, _ requests: [UInt16] = []) -> [UInt8] {
    var bytes = name(export)
    bytes.appendBigEndian(UInt16(requests.count))
    for request in requests { bytes.appendBigEndian(request) }
    return bytes
  }

  static func context(_ export: String, _ queries: [String]) -> [UInt8] {
    var bytes = name(export)
    bytes.appendBigEndian(UInt32(queries.count))
    for query in queries { bytes += name(query) }
    return bytes
  }

  func negotiate(_ style: ReplyStyle, context: Bool, export: String) throws {
    try greet()
    var options: [(UInt32, [UInt8])] = []
    if style == .structured { options.append((NBDOption.structuredReply, [])) }
    if style == .extended { options.append((NBDOption.extendedHeaders, [])) }
    if context && style != .simple {
      options.append((NBDOption.setMetaContext, Self.context(export, ["base:allocation"])))
    }
    options.append((NBDOption.go, Self.go(export, [NBDInfo.blockSize])))
    for (option, data) in options {
      try send(Self.option(option, data))
      let replies = try optionReplies(option)
      guard replies.last?.type == NBDOptionReply.ack else {
        throw ClientError.unexpected("option \(option) refused")
      }
      if let information = replies.first(where: { $0.data.count == 12 && $0.data.starts(with: [0, 0]) }) {
        var reader = ByteReader(information.data[2...])
        exportSize = reader.integer(UInt64.self) ?? 0
        transmissionFlags = NBDTransmissionFlags(rawValue: reader.integer(UInt16.self) ?? 0)
      }
    }
    self.style = style
  }

  // MARK: transmission

  func encode(
    _ command: UInt16, flags: UInt16 = 0, cookie: UInt64 = 1, offset: UInt64 = 0, length: UInt64 = 0,
    payload: [UInt8] = [], magic: UInt32? = nil
  ) -> [UInt8] {
    var bytes: [UInt8] = []
    let isExtended = style == .extended
    bytes.appendBigEndian(magic ?? (isExtended ? NBDMagic.extendedRequest : NBDMagic.request))
    bytes.appendBigEndian(
      isExtended && !payload.isEmpty ? flags | NBDCommandFlag.payloadLength : flags)
    bytes.appendBigEndian(command)
    bytes.appendBigEndian(cookie)
    bytes.appendBigEndian(offset)
    if isExtended { bytes.appendBigEndian(length) } else { bytes.appendBigEndian(UInt32(length)) }
    return bytes + payload
  }

  /// Sends a request without waiting for its answer.
  func post(
    _ command: UInt16, flags: UInt16 = 0, cookie: UInt64 = 1, offset: UInt64 = 0, length: UInt64 = 0,
    payload: [UInt8] = []
  ) throws {
    if command == NBDCommand.read { readLengths[cookie] = Int(truncatingIfNeeded: length) }
    try send(
      encode(command, flags: flags, cookie: cookie, offset: offset, length: length, payload: payload))
  }

  /// Sends a request and waits for its answer.
  func call(
    _ command: UInt16, flags: UInt16 = 0, cookie: UInt64 = 1, offset: UInt64 = 0, length: UInt64 = 0,
    payload: [UInt8] = []
  ) throws -> Reply {
    try post(command, flags: flags, cookie: cookie, offset: offset, length: length, payload: payload)
    return try reply()
  }

  func read(_ offset: UInt64, _ length: Int, flags: UInt16 = 0) throws -> Reply {
    try call(NBDCommand.read, flags: flags, offset: offset, length: UInt64(length))
  }

  func write(_ offset: UInt64, _ bytes: [UInt8], flags: UInt16 = 0) throws -> Reply {
    try call(
      NBDCommand.write, flags: flags, offset: offset, length: UInt64(bytes.count), payload: bytes)
  }

  /// The next whole reply, of any request.
  func reply() throws -> Reply {
    let magic = try integer(UInt32.self)
    switch magic {
    case NBDMagic.simpleReply where style != .extended: return try simpleReply()
    case NBDMagic.structuredReply where style == .structured,
      NBDMagic.extendedReply where style == .extended:
      return try chunks()
    default: throw ClientError.unexpected("reply magic \(String(magic, radix: 16))")
    }
  }

  private func simpleReply() throws -> Reply {
    let error = try integer(UInt32.self)
    var reply = Reply(cookie: try integer(UInt64.self), error: error)
    if let length = readLengths.removeValue(forKey: reply.cookie) {
      guard style == .simple else { throw ClientError.unexpected("simple reply to a read") }
      if error == 0 { reply.data = try receive(length) }
    }
    return reply
  }

  private func chunks() throws -> Reply {
    // The server sends one chunk a reply, with DONE set.
    guard try integer(UInt16.self) == NBDReplyFlag.done else { throw ClientError.unexpected("flags") }
    let type = try integer(UInt16.self)
    var reply = Reply(cookie: try integer(UInt64.self))
    readLengths.removeValue(forKey: reply.cookie)
    let offset = style == .extended ? try integer(UInt64.self) : nil
    let length =
      style == .extended ? Int(try integer(UInt64.self)) : Int(try integer(UInt32.self))
    let payload = try receive(length)
    var reader = ByteReader(payload[...])
    switch type {
    case NBDReplyType.none:
      guard length == 0 else { throw ClientError.unexpected("payload of a NONE chunk") }
    case NBDReplyType.offsetData:
      let start = reader.integer(UInt64.self)
      guard length >= 9, offset == nil || start == offset else {
        throw ClientError.unexpected("data chunk")
      }
      reply.data = Array(payload.dropFirst(8))
    case NBDReplyType.error:
      reply.error = reader.integer(UInt32.self) ?? 0
      guard reply.error != 0, reader.integer(UInt16.self) == 0, reader.count == 0 else {
        throw ClientError.unexpected("error chunk")
      }
    case NBDReplyType.blockStatus where style == .structured:
      guard reader.integer(UInt32.self) == NBDMetaContext.allocationID else {
        throw ClientError.unexpected("context")
      }
      while let length = reader.integer(UInt32.self), let flags = reader.integer(UInt32.self) {
        reply.extents.append((UInt64(length), UInt64(flags)))
      }
    case NBDReplyType.blockStatusExtended where style == .extended:
      guard reader.integer(UInt32.self) == NBDMetaContext.allocationID,
        let count = reader.integer(UInt32.self), Int(count) * 16 == reader.count
      else { throw ClientError.unexpected("context") }
      while let length = reader.integer(UInt64.self), let flags = reader.integer(UInt64.self) {
        reply.extents.append((length, flags))
      }
    default: throw ClientError.unexpected("chunk type \(type)")
    }
    return reply
  }
}
