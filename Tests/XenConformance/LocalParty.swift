// SPDX-License-Identifier: Apache-2.0
//
// A party in this process: each order is one call of the seam.

internal import CXen
internal import Glibc
public import Xen

/// Carries orders out on a XenSystem.
public final class LocalParty: ConformanceParty {
  /// The domain it acts for.
  public let domain: DomainID
  private let system: any XenSystem
  private var objects: [Int: Held] = [:]
  private var last = 0
  private var sharing: (any GrantSharing)?
  private var mapping: (any GrantMapping)?

  private enum Held {
    case shared(SharedPages)
    case mapped(UnsafeMutableRawPointer, count: Int)
    case events(any EventChannels)
    case store(any XenStore)
  }

  /// A party of a domain on a system.
  public init(_ system: any XenSystem, domain: DomainID) {
    self.system = system
    self.domain = domain
  }

  /// Carries an order out.
  public func perform(_ words: [String]) throws(XenError) -> [String] {
    let arguments = Array(words.dropFirst())
    switch words.first {
    case "share", "unshare", "map", "map-notify", "unmap", "poke", "peek", "copy-from", "copy-to":
      return try grants(words[0], arguments)
    case "events", "unbound", "bind", "notify", "unmask", "unbind", "pending", "readable":
      return try events(words[0], arguments)
    case "close":
      objects[integer(arguments, 0)] = nil
      return []
    default: return try store(words.first ?? "", arguments)
    }
  }

  private func keep(_ object: Held) -> Int {
    last += 1
    objects[last] = object
    return last
  }

  private func integer(_ words: [String], _ index: Int) -> Int {
    index < words.count ? Int(words[index]) ?? -1 : -1
  }
  private func domain(_ words: [String], _ index: Int) -> DomainID {
    DomainID(UInt16(truncatingIfNeeded: integer(words, index)))
  }
  private func notification(_ clear: String, _ notify: String) -> UnmapNotification? {
    if clear == "-" && notify == "-" { return nil }
    return UnmapNotification(clearByteAt: Int(clear), notify: UInt32(notify).map { EventChannelPort($0) })
  }

  // MARK: grants

  private func grants(_ order: String, _ words: [String]) throws(XenError) -> [String] {
    switch order {
    case "share":
      if sharing == nil { sharing = try system.openGrantSharing() }
      guard
        let pages = try sharing?.share(
          pages: integer(words, 0), with: domain(words, 1), writable: words[2] == "w",
          notification: notification(words[3], words[4]))
      else { break }
      let references = pages.references.map { "\($0)" }
      return ["\(keep(.shared(pages)))"] + references
    case "unshare": objects[integer(words, 0)] = nil
    case "map":
      let references = words.dropFirst(2).compactMap { UInt32($0).map { GrantRef($0) } }
      let address = try opened().map(references, of: domain(words, 0), writable: words[1] == "w")
      return ["\(keep(.mapped(address, count: references.count)))"]
    case "map-notify":
      let address = try opened().map(
        GrantRef(UInt32(words[2]) ?? 0), of: domain(words, 0), writable: words[1] == "w",
        notification: notification(words[3], words[4]) ?? UnmapNotification())
      return ["\(keep(.mapped(address, count: 1)))"]
    case "unmap":
      guard case .mapped(let address, let count) = objects[integer(words, 0)] else { break }
      try opened().unmap(address, count: count)
      objects[integer(words, 0)] = nil
    case "poke":
      let address = try memory(words) + integer(words, 1)
      bytes(words[2]).withUnsafeBytes {
        address.copyMemory(from: $0.baseAddress ?? .init(address), byteCount: $0.count)
      }
    case "peek":
      let address = try memory(words) + integer(words, 1)
      return [hexadecimal(Array(UnsafeRawBufferPointer(start: address, count: integer(words, 2))))]
    case "copy-from":
      var buffer = [UInt8](repeating: 0, count: integer(words, 3))
      let scratch = UnsafeMutableRawPointer.allocate(byteCount: 1, alignment: 1)
      defer { scratch.deallocate() }
      var status = 0
      let mapping = try opened()
      let (reference, offset) = (GrantRef(UInt32(words[1]) ?? 0), UInt16(integer(words, 2)))
      let failure: XenError? = buffer.withUnsafeMutableBytes { raw in
        var segments = [
          GrantCopySegment(
            source: .granted(reference, domain(words, 0), offset: offset),
            destination: .local(raw.baseAddress ?? scratch),
            byteCount: UInt16(raw.count))
        ]
        var span = segments.mutableSpan
        do throws(XenError) {
          try mapping.copy(&span)
          status = Int(segments[0].status.rawValue)
          return nil
        } catch { return error }
      }
      if let failure { throw failure }
      return ["\(status)", hexadecimal(buffer)]
    case "copy-to":
      var data = bytes(words[2])
      let mapping = try opened()
      let references = words.dropFirst(3).compactMap { UInt32($0).map { GrantRef($0) } }
      var answers: [String] = []
      let failure: XenError? = data.withUnsafeMutableBytes { raw in
        guard let base = raw.baseAddress else { return nil }
        var segments = references.map { reference in
          GrantCopySegment(
            source: .local(base),
            destination: .granted(reference, domain(words, 0), offset: UInt16(integer(words, 1))),
            byteCount: UInt16(raw.count))
        }
        var span = segments.mutableSpan
        do throws(XenError) {
          try mapping.copy(&span)
          answers = segments.map { "\($0.status.rawValue)" }
          return nil
        } catch { return error }
      }
      if let failure { throw failure }
      return answers
    default: break
    }
    return []
  }

  private func opened() throws(XenError) -> any GrantMapping {
    if let mapping { return mapping }
    let opened = try system.openGrantMapping()
    mapping = opened
    return opened
  }

  private func memory(_ words: [String]) throws(XenError) -> UnsafeMutableRawPointer {
    switch objects[integer(words, 0)] {
    case .shared(let pages): return pages.baseAddress
    case .mapped(let address, _): return address
    default: throw XenError(.invalid, "no memory \(words.first ?? "")")
    }
  }

  // MARK: event channels

  private func events(_ order: String, _ words: [String]) throws(XenError) -> [String] {
    if order == "events" { return ["\(keep(.events(try system.openEventChannels())))"] }
    if order == "readable", case .store(let store) = objects[integer(words, 0)] {
      return [wait(store.fileDescriptor, integer(words, 1)) ? "1" : "0"]
    }
    guard case .events(let channels) = objects[integer(words, 0)] else {
      throw XenError(.invalid, "no event channels \(words)")
    }
    let port = EventChannelPort(UInt32(truncatingIfNeeded: integer(words, 1)))
    switch order {
    case "unbound": return ["\(try channels.bindUnbound(remote: domain(words, 1)))"]
    case "bind":
      let remote = EventChannelPort(UInt32(truncatingIfNeeded: integer(words, 2)))
      return ["\(try channels.bindInterdomain(remote: domain(words, 1), port: remote))"]
    case "notify": try channels.notify(port)
    case "unmask": try channels.unmask(port)
    case "unbind": try channels.unbind(port)
    case "pending":
      if let port = try channels.nextPending() { return ["\(port)"] }
      guard integer(words, 1) > 0, wait(channels.fileDescriptor, integer(words, 1)) else { return ["-"] }
      return [try channels.nextPending().map { "\($0)" } ?? "-"]
    case "readable": return [wait(channels.fileDescriptor, integer(words, 1)) ? "1" : "0"]
    default: break
    }
    return []
  }

  private func wait(_ descriptor: Int32, _ milliseconds: Int) -> Bool {
    var look = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
    return poll(&look, 1, Int32(milliseconds)) == 1
  }

  // MARK: xenstore

  private func store(_ order: String, _ words: [String]) throws(XenError) -> [String] {
    if order == "store" { return ["\(keep(.store(try system.openXenStore())))"] }
    guard case .store(let store) = objects[integer(words, 0)] else {
      throw XenError(.invalid, "what is \(order) \(words)?")
    }
    let path = words.count > 1 ? words[1] : ""
    switch order {
    case "read": return [try store.readBytes(path).map { hexadecimal($0) } ?? "-"]
    case "write": try store.write(path, bytes(words[2]))
    case "list":
      guard let names = try store.list(path) else { return ["-"] }
      return ["+"] + names
    case "mkdir": try store.makeDirectory(path)
    case "remove": try store.remove(path)
    case "set-permissions":
      try store.setPermissions(path, words.dropFirst(2).map { Self.permission($0) })
    case "permissions":
      guard let permissions = try store.permissions(path) else { return ["-"] }
      return ["+"] + permissions.map { "\($0.domain)\($0.read ? "r" : "")\($0.write ? "w" : "")" }
    case "watch": try store.watch(path, token: words[2])
    case "unwatch": try store.unwatch(path, token: words[2])
    case "event":
      if let event = try store.nextWatchEvent() { return [event.path, event.token] }
      guard wait(store.fileDescriptor, integer(words, 1)), let event = try store.nextWatchEvent() else {
        return ["-"]
      }
      return [event.path, event.token]
    case "increment":
      // Each step is a transaction that conflicts with anybody else's.
      for _ in 0..<integer(words, 2) {
        try store.transaction { (operations) throws(XenError) in
          let value = try operations.read(path).flatMap { Int($0) } ?? 0
          try operations.write(path, "\(value + 1)")
        }
      }
    case "interfere": return try interfere(store, path)
    case "abort":
      do throws(XenError) {
        try store.transaction { (operations) throws(XenError) in
          try operations.write(path, "aborted")
          throw XenError(.invalid, "on purpose")
        }
      } catch {
        if error.code != .invalid { throw error }
      }
    default: throw XenError(.invalid, "what is \(order)?")
    }
    return []
  }

  /// A transaction that somebody else writes into: what each attempt saw before and after, and the outcome.
  private func interfere(_ store: any XenStore, _ path: String) throws(XenError) -> [String] {
    let other = try system.openXenStore()
    var seen: [String] = []
    try store.transaction { (operations) throws(XenError) in
      seen.append(try operations.read(path) ?? "-")
      if seen.count == 1 { try other.write(path, "theirs") }
      seen.append(try operations.read(path) ?? "-")
      try operations.write(path, "ours")
      seen.append(try other.read(path) ?? "-")
    }
    return seen + [try other.read(path) ?? "-"]
  }

  private static func permission(_ text: String) -> XenStorePermission {
    let number = text.prefix { $0.isNumber }
    return XenStorePermission(
      domain: DomainID(UInt16(number) ?? 0), read: text.contains("r"), write: text.contains("w"))
  }
}
