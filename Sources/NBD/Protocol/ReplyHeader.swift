// SPDX-License-Identifier: Apache-2.0
//
// The bytes of a reply before its data, in each of the three styles (proto.md, "Simple reply message",
// "Structured reply chunk message"; "Extended reply chunk message" of EXTENDED_HEADERS). Encoding depends on the
// slot alone, so that a reply that was sent in part is simply encoded again.

extension RequestSlot {
  /// Bytes of data after the header.
  @inline(__always)
  var dataLength: Int { reply == .data ? Int(truncatingIfNeeded: byteCount) : 0 }

  /// What `encodeHeader` will return.
  @inline(__always)
  func headerLength(style: ReplyStyle) -> Int {
    switch style {
    case .simple: return 16
    case .structured:
      switch reply {
      case .data: return 28
      case .blockStatus: return 32
      case .status: return error != NBDError.none ? 26 : isRead ? 20 : 16
      }
    case .extended:
      switch reply {
      case .data: return 40
      case .blockStatus: return 56
      case .status: return error != NBDError.none ? 38 : 32
      }
    }
  }

  /// Encodes everything before the data.
  ///
  /// - Parameters:
  ///   - bytes: `NBDWire.longestReply` of them.
  ///   - style: what the connection agreed on.
  /// - Returns: how many bytes the header has.
  func encodeHeader(into bytes: inout MutableRawSpan, style: ReplyStyle) -> Int {
    switch style {
    case .simple:
      return encodeSimple(into: &bytes)
    case .structured:
      // A simple reply is shorter, and allowed to everything but reads as long as it carries nothing.
      if reply == .status && !isRead && error == NBDError.none { return encodeSimple(into: &bytes) }
      let body = 20
      let type: UInt16
      let length: Int
      switch reply {
      case .data:
        type = NBDReplyType.offsetData
        bytes.putBigEndian(byteOffset, at: body)
        length = 8
      case .blockStatus:
        type = NBDReplyType.blockStatus
        bytes.putBigEndian(NBDMetaContext.allocationID, at: body)
        bytes.putBigEndian(UInt32(truncatingIfNeeded: byteCount), at: body + 4)
        bytes.putBigEndian(UInt32(0), at: body + 8)
        length = 12
      case .status:
        (type, length) = encodeStatus(into: &bytes, at: body)
      }
      bytes.putBigEndian(NBDMagic.structuredReply, at: 0)
      bytes.putBigEndian(NBDReplyFlag.done, at: 4)
      bytes.putBigEndian(type, at: 6)
      bytes.putBigEndian(cookie, at: 8)
      bytes.putBigEndian(UInt32(truncatingIfNeeded: length + dataLength), at: 16)
      return 20 + length
    case .extended:
      return encodeExtended(into: &bytes)
    }
  }

  @inline(__always)
  private func encodeSimple(into bytes: inout MutableRawSpan) -> Int {
    bytes.putBigEndian(NBDMagic.simpleReply, at: 0)
    bytes.putBigEndian(error, at: 4)
    bytes.putBigEndian(cookie, at: 8)
    return 16
  }

  private func encodeExtended(into bytes: inout MutableRawSpan) -> Int {
    let body = 32
    let type: UInt16
    let length: Int
    // The header repeats the request's offset, which is also where data and extents start.
    switch reply {
    case .data:
      type = NBDReplyType.offsetData
      bytes.putBigEndian(byteOffset, at: body)
      length = 8
    case .blockStatus:
      type = NBDReplyType.blockStatusExtended
      bytes.putBigEndian(NBDMetaContext.allocationID, at: body)
      bytes.putBigEndian(UInt32(1), at: body + 4)
      bytes.putBigEndian(byteCount, at: body + 8)
      bytes.putBigEndian(UInt64(0), at: body + 16)
      length = 24
    case .status:
      (type, length) = encodeStatus(into: &bytes, at: body)
    }
    bytes.putBigEndian(NBDMagic.extendedReply, at: 0)
    bytes.putBigEndian(NBDReplyFlag.done, at: 4)
    bytes.putBigEndian(type, at: 6)
    bytes.putBigEndian(cookie, at: 8)
    bytes.putBigEndian(byteOffset, at: 16)
    bytes.putBigEndian(UInt64(truncatingIfNeeded: length + dataLength), at: 24)
    return 32 + length
  }

  @inline(__always)
  private func encodeStatus(into bytes: inout MutableRawSpan, at body: Int) -> (UInt16, Int) {
    if error == NBDError.none { return (NBDReplyType.none, 0) }
    bytes.putBigEndian(error, at: body)
    bytes.putBigEndian(UInt16(0), at: body + 4)
    return (NBDReplyType.error, 6)
  }
}

extension TargetStatus {
  /// The error that a client sees.
  var wireError: UInt32 {
    switch self {
    case .okay: NBDError.none
    case .ioError: NBDError.io
    case .notSupported: NBDError.notSupported
    case .readOnly: NBDError.notPermitted
    case .noSpace: NBDError.noSpace
    case .shutdown: NBDError.shutdown
    }
  }
}
