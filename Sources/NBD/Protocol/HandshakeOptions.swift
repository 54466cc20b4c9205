// SPDX-License-Identifier: Apache-2.0
//
// What each option of the handshake does (proto.md, "Option types"). Malformed data is refused with ERR_INVALID
// and the handshake goes on; only EXPORT_NAME, which has no error reply, ends the connection.

extension Handshake {
  /// Performs one complete option.
  mutating func perform(
    _ option: UInt32, _ data: ArraySlice<UInt8>, _ export: Export, _ geometry: TargetGeometry
  ) -> Action {
    switch option {
    case NBDOption.exportName: return exportName(data, export, geometry)
    case NBDOption.abort: return .close(Self.reply(option, NBDOptionReply.ack))
    case NBDOption.list: return data.isEmpty ? list(export) : unwanted(option)
    case NBDOption.startTLS:
      guard data.isEmpty else { return unwanted(option) }
      return .send(Self.reply(option, NBDOptionReply.errorPolicy, "this server speaks no TLS"))
    case NBDOption.info, NBDOption.go: return information(option, data, export, geometry)
    case NBDOption.structuredReply: return data.isEmpty ? structuredReply() : unwanted(option)
    case NBDOption.extendedHeaders: return data.isEmpty ? extendedHeaders() : unwanted(option)
    case NBDOption.listMetaContext: return metaContext(option, data, export)
    case NBDOption.setMetaContext:
      // Whatever comes of it, the earlier selection is gone.
      hasAllocationContext = false
      return metaContext(option, data, export)
    default: return .send(Self.reply(option, NBDOptionReply.errorUnsupported, "unknown option"))
    }
  }

  private func unwanted(_ option: UInt32) -> Action {
    .send(Self.reply(option, NBDOptionReply.errorInvalid, "this option takes no data"))
  }

  private func malformed(_ option: UInt32) -> Action {
    .send(Self.reply(option, NBDOptionReply.errorInvalid, "the option's data is malformed"))
  }

  private func accepts(_ name: ArraySlice<UInt8>, _ export: Export) -> Bool {
    name.isEmpty || name.elementsEqual(export.name.utf8)
  }

  private func session(_ export: Export, _ geometry: TargetGeometry) -> NegotiatedSession {
    NegotiatedSession(
      style: style, hasAllocationContext: hasAllocationContext,
      flags: export.transmissionFlags(geometry, style: style, hasContext: hasAllocationContext))
  }

  private func exportName(_ name: ArraySlice<UInt8>, _ export: Export, _ geometry: TargetGeometry) -> Action {
    // Extended headers came with the promise not to use this option.
    guard accepts(name, export), style != .extended else { return .close([]) }
    var bytes: [UInt8] = []
    bytes.appendBigEndian(geometry.byteCount)
    let session = session(export, geometry)
    bytes.appendBigEndian(session.flags.rawValue)
    if sendsZeroes { bytes.append(contentsOf: repeatElement(0, count: 124)) }
    return .transmit(bytes, session)
  }

  private func list(_ export: Export) -> Action {
    var data: [UInt8] = []
    data.appendBigEndian(UInt32(truncatingIfNeeded: export.name.utf8.count))
    data.append(contentsOf: export.name.utf8)
    if let description = export.description { data.append(contentsOf: description.utf8) }
    return .send(
      Self.reply(NBDOption.list, NBDOptionReply.server, data)
        + Self.reply(NBDOption.list, NBDOptionReply.ack))
  }

  private func information(
    _ option: UInt32, _ data: ArraySlice<UInt8>, _ export: Export, _ geometry: TargetGeometry
  ) -> Action {
    var reader = ByteReader(data)
    guard let nameLength = reader.integer(UInt32.self), let name = reader.bytes(nameLength),
      let requestCount = reader.integer(UInt16.self), reader.count == Int(requestCount) * 2
    else { return malformed(option) }
    guard accepts(name, export) else {
      return .send(Self.reply(option, NBDOptionReply.errorUnknown, "no export has this name"))
    }
    var wanted = Set<UInt16>()
    while let request = reader.integer(UInt16.self) { wanted.insert(request) }

    var replies = Self.reply(option, NBDOptionReply.info, exportInformation(export, geometry))
    if wanted.contains(NBDInfo.name) {
      replies += Self.reply(option, NBDOptionReply.info, text(NBDInfo.name, export.name))
    }
    if wanted.contains(NBDInfo.description), let description = export.description {
      replies += Self.reply(option, NBDOptionReply.info, text(NBDInfo.description, description))
    }
    if wanted.contains(NBDInfo.blockSize) {
      replies += Self.reply(option, NBDOptionReply.info, blockSizes(geometry))
    }
    replies += Self.reply(option, NBDOptionReply.ack)
    return option == NBDOption.go ? .transmit(replies, session(export, geometry)) : .send(replies)
  }

  private func exportInformation(_ export: Export, _ geometry: TargetGeometry) -> [UInt8] {
    var data: [UInt8] = []
    data.appendBigEndian(NBDInfo.export)
    data.appendBigEndian(geometry.byteCount)
    data.appendBigEndian(session(export, geometry).flags.rawValue)
    return data
  }

  private func text(_ type: UInt16, _ string: String) -> [UInt8] {
    var data: [UInt8] = []
    data.appendBigEndian(type)
    data.append(contentsOf: string.utf8)
    return data
  }

  private func blockSizes(_ geometry: TargetGeometry) -> [UInt8] {
    // proto.md: minimum at most 64 KiB, preferred at least 512 and at least the minimum.
    let minimum = min(max(geometry.sectorSize, 1), 65_536)
    let preferred = min(max(geometry.preferredSize, minimum, 512), Export.maximumPayload)
    var data: [UInt8] = []
    data.appendBigEndian(NBDInfo.blockSize)
    data.appendBigEndian(minimum)
    data.appendBigEndian(preferred)
    data.appendBigEndian(Export.maximumPayload)
    return data
  }

  private mutating func structuredReply() -> Action {
    if style == .extended {
      return .send(
        Self.reply(
          NBDOption.structuredReply, NBDOptionReply.errorExtendedHeadersRequired,
          "extended headers are in use already"))
    }
    style = .structured
    return .send(Self.reply(NBDOption.structuredReply, NBDOptionReply.ack))
  }

  private mutating func extendedHeaders() -> Action {
    style = .extended
    return .send(Self.reply(NBDOption.extendedHeaders, NBDOptionReply.ack))
  }

  private mutating func metaContext(_ option: UInt32, _ data: ArraySlice<UInt8>, _ export: Export) -> Action {
    let selects = option == NBDOption.setMetaContext
    if selects && style == .simple {
      return .send(
        Self.reply(option, NBDOptionReply.errorInvalid, "metadata contexts need structured replies"))
    }
    var reader = ByteReader(data)
    guard let nameLength = reader.integer(UInt32.self), let name = reader.bytes(nameLength),
      let queryCount = reader.integer(UInt32.self)
    else { return malformed(option) }
    var matches = queryCount == 0 && !selects
    for _ in 0..<queryCount {
      // Each query takes four bytes at least, so a count too great ends here after as many turns as there is data.
      guard let length = reader.integer(UInt32.self), let query = reader.bytes(length) else {
        return malformed(option)
      }
      if query.elementsEqual(NBDMetaContext.allocation.utf8) { matches = true }
      if !selects && query.elementsEqual("base:".utf8) { matches = true }
    }
    guard reader.count == 0 else { return malformed(option) }
    guard accepts(name, export) else {
      return .send(Self.reply(option, NBDOptionReply.errorUnknown, "no export has this name"))
    }
    var replies: [UInt8] = []
    if matches {
      var context: [UInt8] = []
      context.appendBigEndian(selects ? NBDMetaContext.allocationID : 0)
      context.append(contentsOf: NBDMetaContext.allocation.utf8)
      replies += Self.reply(option, NBDOptionReply.metaContext, context)
    }
    if selects { hasAllocationContext = matches }
    return .send(replies + Self.reply(option, NBDOptionReply.ack))
  }
}
