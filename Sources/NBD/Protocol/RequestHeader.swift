// SPDX-License-Identifier: Apache-2.0
//
// One request of the transmission phase: its header decoded, and whether it may be done (proto.md, "Request
// message", "Request types", "Error values"). Pure functions of the header and the device's geometry.

/// A request's header in host byte order.
///
/// Untrusted: every field is the client's.
struct RequestHeader {
  var flags: UInt16
  var command: UInt16
  /// Comes back in the reply; means nothing here.
  var cookie: UInt64
  var byteOffset: UInt64
  /// A payload's length or an effect length; see `payloadLength`.
  var length: UInt64
  var isExtended: Bool

  /// Decodes a header.
  ///
  /// - Parameters:
  ///   - bytes: `NBDWire.compactRequest` or `extendedRequest` of them, as the style has it.
  ///   - style: what the connection agreed on.
  /// - Returns: nil when the magic number is wrong, after which the stream means nothing any more.
  @inline(__always)
  init?(_ bytes: RawSpan, style: ReplyStyle) {
    isExtended = style == .extended
    let magic = bytes.bigEndian(0, as: UInt32.self)
    guard magic == (isExtended ? NBDMagic.extendedRequest : NBDMagic.request) else { return nil }
    flags = bytes.bigEndian(4, as: UInt16.self)
    command = bytes.bigEndian(6, as: UInt16.self)
    cookie = bytes.bigEndian(8, as: UInt64.self)
    byteOffset = bytes.bigEndian(16, as: UInt64.self)
    length =
      isExtended
      ? bytes.bigEndian(24, as: UInt64.self) : UInt64(bytes.bigEndian(24, as: UInt32.self))
  }

  /// Bytes that follow the header.
  @inline(__always)
  var payloadLength: UInt64 {
    let hasPayload =
      isExtended ? flags & NBDCommandFlag.payloadLength != 0 : command == NBDCommand.write
    return hasPayload ? length : 0
  }
}

/// What is to be done with a request.
enum RequestVerdict {
  /// Hand it to the target.
  case perform(TargetRequest.Command)
  /// Answer it at once: with an error, or NBDError.none.
  case answer(UInt32)
  /// Answer it with the allocation status.
  case blockStatus
  /// Finish what is in flight, then close.
  case disconnect
}

extension NegotiatedSession {
  /// The answer to a request for what the device has not.
  fileprivate func lacks(_ promise: NBDTransmissionFlags) -> RequestVerdict {
    .answer(flags.contains(promise) ? NBDError.notSupported : NBDError.invalid)
  }
}

extension RequestHeader {
  /// Judges a request, without looking at its payload.
  ///
  /// - Parameters:
  ///   - geometry: the device, with `isReadOnly` set when the export is.
  ///   - session: what the connection agreed on. What it was promised and the device has no more is not supported;
  ///     what it was not promised is invalid.
  func verdict(_ geometry: TargetGeometry, _ session: NegotiatedSession) -> RequestVerdict {
    let (style, hasContext) = (session.style, session.hasAllocationContext)
    var known = geometry.canFlush || session.flags.contains(.sendFUA) ? NBDCommandFlag.fua : 0
    switch command {
    case NBDCommand.read:
      if style != .simple { known |= NBDCommandFlag.dontFragment }
      guard flags & ~known == 0 else { return .answer(NBDError.invalid) }
      if length > UInt64(Export.maximumPayload) {
        return .answer(style == .simple ? NBDError.invalid : NBDError.overflow)
      }
      return range(geometry, beyond: NBDError.invalid) ?? .perform(.read)
    case NBDCommand.write:
      if isExtended {
        known |= NBDCommandFlag.payloadLength
        guard flags & NBDCommandFlag.payloadLength != 0 else { return .answer(NBDError.invalid) }
      }
      guard flags & ~known == 0, length <= UInt64(Export.maximumPayload) else {
        return .answer(NBDError.invalid)
      }
      if geometry.isReadOnly { return .answer(NBDError.notPermitted) }
      return durability(geometry) ?? range(geometry, beyond: NBDError.noSpace) ?? .perform(.write)
    case NBDCommand.flush:
      guard flags & ~known == 0, byteOffset == 0, length == 0 else { return .answer(NBDError.invalid) }
      guard geometry.canFlush else { return session.lacks(.sendFlush) }
      return .perform(.flush)
    case NBDCommand.trim:
      guard flags & ~known == 0 else { return .answer(NBDError.invalid) }
      if geometry.isReadOnly { return .answer(NBDError.notPermitted) }
      guard geometry.canTrim else { return session.lacks(.sendTrim) }
      return durability(geometry) ?? range(geometry, beyond: NBDError.invalid) ?? .perform(.trim)
    case NBDCommand.writeZeroes:
      known |= NBDCommandFlag.noHole | NBDCommandFlag.fastZero
      guard flags & ~known == 0 else { return .answer(NBDError.invalid) }
      if geometry.isReadOnly { return .answer(NBDError.notPermitted) }
      if let refusal = durability(geometry) ?? range(geometry, beyond: NBDError.noSpace) { return refusal }
      if flags & NBDCommandFlag.fastZero != 0 && !geometry.canFastZero {
        return .answer(NBDError.notSupported)
      }
      return .perform(.writeZeroes)
    case NBDCommand.cache:
      guard flags & ~known == 0 else { return .answer(NBDError.invalid) }
      // There is no cache here to warm: the request is checked and done.
      return range(geometry, beyond: NBDError.invalid) ?? .answer(NBDError.none)
    case NBDCommand.blockStatus:
      known |= NBDCommandFlag.reqOne
      guard flags & ~known == 0, hasContext, length != 0 else { return .answer(NBDError.invalid) }
      return range(geometry, beyond: NBDError.invalid) ?? .blockStatus
    case NBDCommand.disconnect:
      return .disconnect
    default:
      return .answer(NBDError.invalid)
    }
  }

  /// What FUA alone decides: an error where nothing can be made durable any more.
  @inline(__always)
  private func durability(_ geometry: TargetGeometry) -> RequestVerdict? {
    geometry.canFlush || flags & NBDCommandFlag.fua == 0 ? nil : .answer(NBDError.notSupported)
  }

  /// What the range alone decides: an error past the end, done for no bytes at all, nil for a good range.
  @inline(__always)
  private func range(_ geometry: TargetGeometry, beyond error: UInt32) -> RequestVerdict? {
    let (end, overflow) = byteOffset.addingReportingOverflow(length)
    if overflow { return .answer(NBDError.invalid) }
    if end > geometry.byteCount { return .answer(error) }
    if length == 0 { return .answer(NBDError.none) }
    return nil
  }
}
