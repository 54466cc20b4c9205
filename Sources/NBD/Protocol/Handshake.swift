// SPDX-License-Identifier: Apache-2.0
//
// The server's side of the fixed newstyle handshake (proto.md, "Handshake") as a value without I/O: bytes in, one
// step out. What the bytes were cut into makes no difference.
//
//   clientFlags ──► optionHeader ◄──► optionData / skippedData ──► finished (transmission, or closed)

/// The handshake of one connection.
///
/// Untrusted: every byte comes from the client. Lengths are bounded before anything is kept, nothing traps.
struct Handshake {
  /// What the server sends first.
  static let greeting: [UInt8] = {
    var bytes: [UInt8] = []
    bytes.appendBigEndian(NBDMagic.initial)
    bytes.appendBigEndian(NBDMagic.option)
    bytes.appendBigEndian(([.fixedNewstyle, .noZeroes] as NBDHandshakeFlags).rawValue)
    return bytes
  }()

  /// What to do after bytes were taken in.
  enum Action: Equatable {
    /// Nothing; more bytes are needed.
    case none
    /// Send these bytes and go on.
    case send([UInt8])
    /// Send these bytes; the bytes not taken in yet are requests.
    case transmit([UInt8], NegotiatedSession)
    /// Send these bytes, then close.
    case close([UInt8])
  }

  /// An option with more data than this is answered with ERR_TOO_BIG and skipped.
  static let longestOption: UInt32 = 32 << 10
  /// An option with more data than this ends the connection.
  static let longestSkipped: UInt32 = 16 << 20

  private enum State {
    /// Waits for the 4 bytes that answer the greeting.
    case clientFlags
    /// Waits for the 16 bytes before an option's data.
    case optionHeader
    /// Waits for an option's data.
    case optionData(UInt32, length: Int)
    /// Drops the data of an option that is too long.
    case skippedData(UInt32, remaining: Int)
    /// Takes nothing in any more.
    case finished
  }

  private let export: Export
  private var state = State.clientFlags
  private var pending: [UInt8] = []
  var sendsZeroes = true
  var style = ReplyStyle.simple
  /// Set by SET_META_CONTEXT, and only good for the export it named.
  var hasAllocationContext = false

  init(export: Export) {
    self.export = export
  }

  /// Takes in bytes up to the end of one message.
  ///
  /// - Parameters:
  ///   - input: what came from the client; may be empty, may hold more than one message.
  ///   - geometry: the device as it is now.
  ///   - isStopping: the service is going down; options but ABORT are refused.
  /// - Returns: how many bytes were taken, and what to do.
  mutating func receive(
    _ input: Span<UInt8>, geometry: TargetGeometry, isStopping: Bool
  ) -> (consumed: Int, action: Action) {
    switch state {
    case .clientFlags:
      return collect(4, input) { handshake, message in handshake.clientFlags(message) }
    case .optionHeader:
      return collect(16, input) { handshake, message in handshake.optionHeader(message) }
    case .optionData(let option, let length):
      return collect(length, input) { handshake, message in
        handshake.state = .optionHeader
        if isStopping && option == NBDOption.exportName {
          // It has no error reply.
          handshake.state = .finished
          return .close([])
        }
        if isStopping && option != NBDOption.abort {
          return .send(Self.reply(option, NBDOptionReply.errorShutdown, "the server is going down"))
        }
        let action = handshake.perform(option, message[...], handshake.export, geometry)
        switch action {
        case .none, .send: break
        case .transmit, .close: handshake.state = .finished
        }
        return action
      }
    case .skippedData(let option, let remaining):
      let taken = min(remaining, input.count)
      guard taken == remaining else {
        state = .skippedData(option, remaining: remaining - taken)
        return (taken, .none)
      }
      state = .optionHeader
      return (taken, .send(Self.reply(option, NBDOptionReply.errorTooBig, "too much data for an option")))
    case .finished:
      return (0, .none)
    }
  }

  /// Gathers a message of a known length, which may come in pieces, and hands it on.
  private mutating func collect(
    _ length: Int, _ input: Span<UInt8>,
    _ complete: (inout Handshake, [UInt8]) -> Action
  ) -> (Int, Action) {
    let taken = min(length - pending.count, input.count)
    for index in 0..<taken { pending.append(input[index]) }
    guard pending.count == length else { return (taken, .none) }
    let message = pending
    pending.removeAll(keepingCapacity: true)
    return (taken, complete(&self, message))
  }

  private mutating func clientFlags(_ message: [UInt8]) -> Action {
    var reader = ByteReader(message[...])
    let flags = NBDClientFlags(rawValue: reader.integer(UInt32.self) ?? .max)
    guard flags.isSubset(of: .known) else { return end() }
    sendsZeroes = !flags.contains(.noZeroes)
    state = .optionHeader
    return .none
  }

  private mutating func optionHeader(_ message: [UInt8]) -> Action {
    var reader = ByteReader(message[...])
    guard reader.integer(UInt64.self) == NBDMagic.option, let option = reader.integer(UInt32.self),
      let length = reader.integer(UInt32.self), length <= Self.longestSkipped
    else { return end() }
    guard length <= Self.longestOption else {
      // EXPORT_NAME has no error reply, so a name that cannot be right ends the connection.
      if option == NBDOption.exportName { return end() }
      state = .skippedData(option, remaining: Int(length))
      return .none
    }
    state = .optionData(option, length: Int(length))
    return .none
  }

  private mutating func end() -> Action {
    state = .finished
    return .close([])
  }

  /// One reply to an option.
  static func reply(_ option: UInt32, _ type: UInt32, _ data: [UInt8] = []) -> [UInt8] {
    var bytes: [UInt8] = []
    bytes.reserveCapacity(20 + data.count)
    bytes.appendBigEndian(NBDMagic.optionReply)
    bytes.appendBigEndian(option)
    bytes.appendBigEndian(type)
    bytes.appendBigEndian(UInt32(truncatingIfNeeded: data.count))
    bytes.append(contentsOf: data)
    return bytes
  }

  /// An error reply with a sentence for people.
  static func reply(_ option: UInt32, _ type: UInt32, _ message: StaticString) -> [UInt8] {
    reply(option, type, Array(message.description.utf8))
  }
}
