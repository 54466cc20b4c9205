// SPDX-License-Identifier: Apache-2.0
//
// The numbers of the NBD protocol (doc/proto.md of NetworkBlockDevice/nbd, "Values"), and of its extension
// EXTENDED_HEADERS. Every one travels in network byte order.

/// Magic numbers, each with the ASCII it spells where it spells any.
enum NBDMagic {
  /// First bytes of the server's greeting: "NBDMAGIC".
  static let initial: UInt64 = 0x4e42_444d_4147_4943
  /// Start of the greeting's second half and of each option: "IHAVEOPT".
  static let option: UInt64 = 0x4948_4156_454f_5054
  /// Start of each reply to an option.
  static let optionReply: UInt64 = 0x0003_e889_0455_65a9
  /// Start of a compact request.
  static let request: UInt32 = 0x2560_9513
  /// Start of an extended request.
  static let extendedRequest: UInt32 = 0x21e4_1c71
  /// Start of a simple reply.
  static let simpleReply: UInt32 = 0x6744_6698
  /// Start of a structured reply's chunk.
  static let structuredReply: UInt32 = 0x668e_33ef
  /// Start of an extended reply's chunk.
  static let extendedReply: UInt32 = 0x6e8a_278c
}

/// What the server says of itself in its greeting.
struct NBDHandshakeFlags: OptionSet {
  let rawValue: UInt16
  static let fixedNewstyle = NBDHandshakeFlags(rawValue: 1 << 0)
  static let noZeroes = NBDHandshakeFlags(rawValue: 1 << 1)
}

/// What the client answers to the greeting.
struct NBDClientFlags: OptionSet {
  let rawValue: UInt32
  static let fixedNewstyle = NBDClientFlags(rawValue: 1 << 0)
  static let noZeroes = NBDClientFlags(rawValue: 1 << 1)
  static let known: NBDClientFlags = [.fixedNewstyle, .noZeroes]
}

/// What an export can do, told at the end of the handshake.
struct NBDTransmissionFlags: OptionSet {
  let rawValue: UInt16
  static let hasFlags = NBDTransmissionFlags(rawValue: 1 << 0)
  static let readOnly = NBDTransmissionFlags(rawValue: 1 << 1)
  static let sendFlush = NBDTransmissionFlags(rawValue: 1 << 2)
  static let sendFUA = NBDTransmissionFlags(rawValue: 1 << 3)
  static let sendTrim = NBDTransmissionFlags(rawValue: 1 << 5)
  static let sendWriteZeroes = NBDTransmissionFlags(rawValue: 1 << 6)
  static let sendDF = NBDTransmissionFlags(rawValue: 1 << 7)
  static let canMultiConn = NBDTransmissionFlags(rawValue: 1 << 8)
  static let sendCache = NBDTransmissionFlags(rawValue: 1 << 10)
  static let sendFastZero = NBDTransmissionFlags(rawValue: 1 << 11)
  static let blockStatusPayload = NBDTransmissionFlags(rawValue: 1 << 12)
}

/// Options of the handshake.
enum NBDOption {
  static let exportName: UInt32 = 1
  static let abort: UInt32 = 2
  static let list: UInt32 = 3
  static let startTLS: UInt32 = 5
  static let info: UInt32 = 6
  static let go: UInt32 = 7
  static let structuredReply: UInt32 = 8
  static let listMetaContext: UInt32 = 9
  static let setMetaContext: UInt32 = 10
  static let extendedHeaders: UInt32 = 11
}

/// Replies to options.
enum NBDOptionReply {
  static let ack: UInt32 = 1
  static let server: UInt32 = 2
  static let info: UInt32 = 3
  static let metaContext: UInt32 = 4
  static let errorUnsupported: UInt32 = 1 << 31 | 1
  static let errorPolicy: UInt32 = 1 << 31 | 2
  static let errorInvalid: UInt32 = 1 << 31 | 3
  static let errorUnknown: UInt32 = 1 << 31 | 6
  static let errorShutdown: UInt32 = 1 << 31 | 7
  static let errorTooBig: UInt32 = 1 << 31 | 9
  static let errorExtendedHeadersRequired: UInt32 = 1 << 31 | 10
}

/// Pieces of information about an export that INFO and GO ask for.
enum NBDInfo {
  static let export: UInt16 = 0
  static let name: UInt16 = 1
  static let description: UInt16 = 2
  static let blockSize: UInt16 = 3
}

/// Commands of the transmission phase.
enum NBDCommand {
  static let read: UInt16 = 0
  static let write: UInt16 = 1
  static let disconnect: UInt16 = 2
  static let flush: UInt16 = 3
  static let trim: UInt16 = 4
  static let cache: UInt16 = 5
  static let writeZeroes: UInt16 = 6
  static let blockStatus: UInt16 = 7
}

/// Flags of a command.
enum NBDCommandFlag {
  /// Durable before the reply.
  static let fua: UInt16 = 1 << 0
  /// Zeroes that stay allocated.
  static let noHole: UInt16 = 1 << 1
  /// A read answered with one chunk.
  static let dontFragment: UInt16 = 1 << 2
  /// A block status answered with one extent.
  static let reqOne: UInt16 = 1 << 3
  /// Zeroes only if that is faster than writing them.
  static let fastZero: UInt16 = 1 << 4
  /// The header's length is a payload's (extended headers only).
  static let payloadLength: UInt16 = 1 << 5
}

/// Chunks of structured and extended replies.
enum NBDReplyType {
  static let none: UInt16 = 0
  static let offsetData: UInt16 = 1
  static let blockStatus: UInt16 = 5
  static let blockStatusExtended: UInt16 = 6
  static let error: UInt16 = 1 << 15 | 1
}

/// Flags of a reply chunk.
enum NBDReplyFlag {
  /// The last chunk of the reply.
  static let done: UInt16 = 1 << 0
}

/// Errors of the transmission phase; the protocol fixes the numbers.
enum NBDError {
  static let none: UInt32 = 0
  static let notPermitted: UInt32 = 1
  static let io: UInt32 = 5
  static let noMemory: UInt32 = 12
  static let invalid: UInt32 = 22
  static let noSpace: UInt32 = 28
  static let overflow: UInt32 = 75
  static let notSupported: UInt32 = 95
  static let shutdown: UInt32 = 108
}

/// Sizes on the wire, in bytes.
enum NBDWire {
  static let compactRequest = 28
  static let extendedRequest = 32
  /// The longest header of any reply that this server sends: an extended block status with one extent.
  static let longestReply = 56
  /// The longest string: names, descriptions, queries.
  static let longestString = 4096
}

/// The one metadata context offered.
enum NBDMetaContext {
  /// Its name.
  static let allocation = "base:allocation"
  /// The identifier that block status replies carry.
  static let allocationID: UInt32 = 1
}
