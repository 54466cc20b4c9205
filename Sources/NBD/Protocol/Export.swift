// SPDX-License-Identifier: Apache-2.0
//
// What the service offers under which name. One export a server: the empty name means it too, as the protocol's
// default export.

/// The device as clients see it.
public struct Export: Sendable, Equatable {
  /// The name, at most 4,096 bytes; the empty name is accepted besides it.
  public var name: String
  /// A sentence for people, shown by `nbdinfo`; at most 4,096 bytes.
  public var description: String?
  /// Refuses writes, whatever the target would allow.
  public var isReadOnly: Bool

  /// An export.
  public init(name: String = "", description: String? = nil, isReadOnly: Bool = false) {
    self.name = String(decoding: name.utf8.prefix(NBDWire.longestString), as: UTF8.self)
    self.description = description.map {
      String(decoding: $0.utf8.prefix(NBDWire.longestString), as: UTF8.self)
    }
    self.isReadOnly = isReadOnly
  }

  /// The largest payload of a read or a write, in bytes: what every client may count on (proto.md, "Size
  /// constraints").
  public static let maximumPayload: UInt32 = 32 << 20

  /// The flags that end the handshake.
  func transmissionFlags(_ geometry: TargetGeometry, style: ReplyStyle, hasContext: Bool)
    -> NBDTransmissionFlags
  {
    var flags: NBDTransmissionFlags = [.hasFlags, .canMultiConn, .sendCache]
    if geometry.canFlush { flags.formUnion([.sendFlush, .sendFUA]) }
    if isReadOnly || geometry.isReadOnly {
      flags.insert(.readOnly)
    } else {
      flags.formUnion([.sendWriteZeroes, .sendFastZero])
      if geometry.canTrim { flags.insert(.sendTrim) }
    }
    if style != .simple { flags.insert(.sendDF) }
    if style == .extended && hasContext { flags.insert(.blockStatusPayload) }
    return flags
  }
}

/// Which of the three kinds of messages a connection agreed on.
enum ReplyStyle: UInt8 {
  /// 28-byte requests, 16-byte replies.
  case simple
  /// 28-byte requests, replies to reads and block status in chunks.
  case structured
  /// 32-byte requests and chunks, 64-bit lengths.
  case extended
}

/// What a handshake agreed on.
struct NegotiatedSession: Equatable {
  /// The kind of messages.
  var style = ReplyStyle.simple
  /// Whether `base:allocation` was selected for this export.
  var hasAllocationContext = false
  /// What the client was told that it may ask for; the device may have lost it since.
  var flags: NBDTransmissionFlags = []
}
