// SPDX-License-Identifier: Apache-2.0
//
// What a frontend has published, read and checked. Untrusted: every node can hold anything; a malformed one is
// refused with a sentence, a missing one has blkif.h's default. Linux: connect_ring, read_per_ring_refs.

internal import Blkif
internal import Xen

/// A ring's pages and its event channel.
struct RingTransport: Equatable {
  var references: [GrantRef]
  var eventChannel: EventChannelPort
}

/// What a frontend has published.
struct FrontendParameters: Equatable {
  var abi: ABI
  var persistent: Bool
  var rings: [RingTransport]

  /// Reads a frontend's directory.
  ///
  /// - Parameters:
  ///   - store: where from.
  ///   - directory: the frontend's, absolute.
  ///   - configuration: what was offered.
  /// - Throws: `.invalid` with a sentence that names the node and what is wrong with it.
  init(
    from store: any XenStoreOperations, directory: String, configuration: BackendConfiguration
  ) throws(XenError) {
    let reader = NodeReader(store: store, directory: directory)
    abi = try Self.abi(reader, configuration)
    persistent = try reader.number(Key.featurePersistent, in: 0...1) == 1
    let queues = try reader.number(Key.multiQueueNumQueues, in: 1...UInt64(configuration.maxQueues)) ?? 1
    let pages =
      configuration.readsRingPageOrder
      ? try Self.pageCount(reader, maxOrder: configuration.maxRingPageOrder) : nil
    if queues == 1 {
      rings = [try Self.ring(reader, pages, configuration.singlePage)]
    } else {
      rings = []
      for index in 0..<Int(queues) {
        rings.append(
          try Self.ring(
            NodeReader(store: store, directory: "\(directory)/\(Key.queue(index))"), pages,
            configuration.singlePage))
      }
    }
  }

  private static func abi(_ reader: NodeReader, _ configuration: BackendConfiguration) throws(XenError) -> ABI
  {
    guard let name = try reader.text(Key.protocol) else {
      if let abi = configuration.abiWhenMissing { return abi }
      throw reader.complaint(Key.protocol, "it is missing")
    }
    if let abi = ABI(rawValue: name), configuration.abis.contains(abi) { return abi }
    if configuration.unknownABIIsNative { return .native }
    let known = ABI.allCases.filter { configuration.abis.contains($0) }.map(\.rawValue)
    let shown = ForeignText.printable(name, atMost: 64)
    throw reader.complaint(Key.protocol, "\"\(shown)\" is none of \(known.joined(separator: ", "))")
  }

  /// The ring's pages; nil for one page in the single form of the node.
  private static func pageCount(_ reader: NodeReader, maxOrder: Int) throws(XenError) -> Int? {
    let order = try reader.number(Key.ringPageOrder, in: 0...UInt64(maxOrder))
    let pages = try reader.number(Key.numRingPages, in: 1...UInt64(1 << maxOrder))
    if let pages, pages.nonzeroBitCount != 1 {
      throw reader.complaint(Key.numRingPages, "\(pages) is no power of two")
    }
    if let order, let pages, 1 << order != pages {
      throw reader.complaint(Key.numRingPages, "\(pages) contradicts \(Key.ringPageOrder) = \(order)")
    }
    return order.map { 1 << Int($0) } ?? pages.map { Int($0) }
  }

  private static func ring(
    _ reader: NodeReader, _ pages: Int?, _ singlePage: BackendConfiguration.SinglePage
  ) throws(XenError) -> RingTransport {
    let references = UInt64(UInt32.min)...UInt64(UInt32.max)
    let port = try reader.required(Key.eventChannel, in: 1...UInt64(UInt32.max))
    var list: [GrantRef] = []
    // Frontends write one page as `ring-ref`, with an order of 0 some as `ring-ref0`.
    if singlePage == .plain, pages == 1 {
      list.append(GrantRef(UInt32(try reader.required(Key.ringRef, in: references))))
    } else if (pages ?? 1) == 1, singlePage != .numbered || pages == nil,
      let single = try reader.number(Key.ringRef, in: references)
    {
      list.append(GrantRef(UInt32(single)))
    } else if let pages {
      for page in 0..<pages {
        list.append(GrantRef(UInt32(try reader.required(Key.ringRef(page), in: references))))
      }
    } else {
      list.append(GrantRef(UInt32(try reader.required(Key.ringRef, in: references))))
    }
    return RingTransport(references: list, eventChannel: EventChannelPort(UInt32(port)))
  }
}

/// Reads nodes of one directory and complains with their paths.
struct NodeReader {
  let store: any XenStoreOperations
  let directory: String

  func text(_ key: String) throws(XenError) -> String? { try store.read("\(directory)/\(key)") }

  /// - Returns: nil when there is no such node.
  func number(_ key: String, in range: ClosedRange<UInt64>) throws(XenError) -> UInt64? {
    guard let bytes = try store.readBytes("\(directory)/\(key)") else { return nil }
    do throws(NumberError) {
      return try Decimal.parse(bytes, in: range)
    } catch {
      let shown = ForeignText.printable(bytes, atMost: 32)
      switch error {
      case .malformed: throw complaint(key, "\"\(shown)\" is no decimal number")
      case .outOfRange:
        throw complaint(key, "\(shown) is not within \(range.lowerBound) to \(range.upperBound)")
      }
    }
  }

  func required(_ key: String, in range: ClosedRange<UInt64>) throws(XenError) -> UInt64 {
    guard let value = try number(key, in: range) else { throw complaint(key, "it is missing") }
    return value
  }

  func complaint(_ key: String, _ what: String) -> XenError {
    XenError(.invalid, "the frontend's node \(directory)/\(key) cannot be used: \(what)")
  }
}
