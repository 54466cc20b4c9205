// SPDX-License-Identifier: Apache-2.0
//
// The seam over ordinary memory, just large enough for a backend: pages of one memfd that can be mapped side by
// side, event channels on eventfds, a xenstore tree. One frontend domain (1), one backend domain (0).

import CXen
import Glibc
import Platform
import Synchronization
import Xen

final class FakeXen: @unchecked Sendable {
  static let frontend = DomainID(1)
  let pageCount: Int
  /// The frontend's own view of its pages; grant reference N is page N.
  let pages: UnsafeMutableRawPointer
  private let memory: Int32
  private let lock = Mutex(())
  // Guarded by `lock`.
  private var granted: [UInt32: Bool] = [:]
  private var mappings: [UInt: Int] = [:]
  private var maps = 0
  private var tree: [String: [UInt8]] = [:]
  private var connections: [FakeStore] = []
  private var channels: [UInt32: FakeChannels] = [:]
  private var peers: [UInt32: UInt32] = [:]
  private var nextPort: UInt32 = 1
  private var mapsAllowed = Int.max
  private var notificationsRefused = 0
  private weak var refusesNot: FakeChannels?
  private var mapRefusal = XenError.Code.limitReached

  init(pageCount: Int = 2048) {
    self.pageCount = pageCount
    memory = cxen_memfd_create("fake-xen", 1)
    precondition(memory >= 0 && ftruncate(memory, off_t(pageCount * Page.size)) == 0)
    guard let base = mmap(nil, pageCount * Page.size, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0),
      base != MAP_FAILED
    else { preconditionFailure("no memory") }
    pages = base
  }

  deinit {
    munmap(pages, pageCount * Page.size)
    close(memory)
  }

  func page(_ reference: UInt32) -> UnsafeMutableRawPointer { pages + Int(reference) * Page.size }
  func grant(_ references: Range<UInt32>, writable: Bool = true) {
    lock.withLock { _ in for reference in references { granted[reference] = writable } }
  }
  func revoke(_ reference: UInt32) { lock.withLock { _ in granted[reference] = nil } }
  /// The next notifications fail, as they do for want of a descriptor.
  func refuseNotifications(_ count: Int, except own: FakeChannels) {
    lock.withLock { _ in
      notificationsRefused = count
      refusesNot = own
    }
  }
  fileprivate func payForNotification(_ sender: FakeChannels) throws(XenError) {
    let isRefused = lock.withLock { _ in
      if sender === refusesNot { return false }
      defer { notificationsRefused = max(0, notificationsRefused - 1) }
      return notificationsRefused > 0
    }
    if isRefused { throw XenError(.limitReached, "no descriptor") }
  }
  /// Pages that the backend has mapped now.
  var mappedPages: Int { lock.withLock { _ in mappings.values.reduce(0, +) } }
  var mapCalls: Int { lock.withLock { _ in maps } }
  var boundPorts: Int { lock.withLock { _ in channels.count } }
  /// How many more map calls succeed, and what the others say: Linux's gntdev has EINVAL for whatever Xen says.
  func allowMaps(_ count: Int, then code: XenError.Code = .limitReached) {
    lock.withLock { _ in
      mapsAllowed = count
      mapRefusal = code
    }
  }

  // MARK: Grants

  fileprivate func map(
    _ references: Span<GrantRef>, writable: Bool
  ) throws(XenError) -> UnsafeMutableRawPointer {
    let result: Result<UnsafeMutableRawPointer, XenError> = lock.withLock { _ in
      maps += 1
      if mapsAllowed == 0 { return .failure(XenError(mapRefusal, "no maptrack handle is left")) }
      mapsAllowed -= 1
      for index in references.indices {
        let reference = references[index]
        guard let mayWrite = granted[reference.rawValue], Int(reference.rawValue) < pageCount else {
          return .failure(XenError(.notFound, "no grant \(reference)"))
        }
        guard mayWrite || !writable else {
          return .failure(XenError(.denied, "grant \(reference) is read-only"))
        }
      }
      let length = references.count * Page.size
      guard let base = mmap(nil, length, PROT_NONE, MAP_PRIVATE | Int32(MAP_ANONYMOUS), -1, 0),
        base != MAP_FAILED
      else { return .failure(XenError(.limitReached, "no address space")) }
      for index in references.indices {
        let address = mmap(
          base + index * Page.size, Page.size, writable ? PROT_READ | PROT_WRITE : PROT_READ,
          MAP_SHARED | MAP_FIXED, memory, off_t(Int(references[index].rawValue) * Page.size))
        precondition(address != MAP_FAILED)
      }
      mappings[UInt(bitPattern: base)] = references.count
      return .success(base)
    }
    return try result.get()
  }

  fileprivate func unmap(_ address: UnsafeMutableRawPointer, count: Int) throws(XenError) {
    let known = lock.withLock { _ in mappings.removeValue(forKey: UInt(bitPattern: address)) }
    guard known == count else { throw XenError(.invalid, "not a mapping of \(count) pages") }
    munmap(address, count * Page.size)
  }

  fileprivate func copy(_ segment: inout GrantCopySegment) {
    func place(_ place: GrantCopySegment.Place, writing: Bool) -> UnsafeMutableRawPointer? {
      switch place {
      case .local(let address): return address
      case .granted(let reference, _, let offset):
        guard let mayWrite = granted[reference.rawValue] else {
          segment.status = .badReference
          return nil
        }
        guard mayWrite || !writing else {
          segment.status = .permissionDenied
          return nil
        }
        guard Int(offset) + Int(segment.byteCount) <= Page.size else {
          segment.status = .badArgument
          return nil
        }
        return page(reference.rawValue) + Int(offset)
      }
    }
    lock.withLock { _ in
      guard let from = place(segment.source, writing: false),
        let to = place(segment.destination, writing: true)
      else { return }
      to.copyMemory(from: from, byteCount: Int(segment.byteCount))
    }
  }

  // MARK: Event channels

  fileprivate func bind(_ handle: FakeChannels, peer: UInt32?) throws(XenError) -> UInt32 {
    let port: UInt32? = lock.withLock { _ in
      if let peer, channels[peer] == nil || peers[peer] != nil { return nil }
      let port = nextPort
      nextPort += 1
      channels[port] = handle
      if let peer {
        peers[port] = peer
        peers[peer] = port
      }
      return port
    }
    guard let port else { throw XenError(.notFound, "no unbound port \(peer ?? 0)") }
    if peer != nil { handle.deliver(port) }
    return port
  }

  fileprivate func notify(_ port: UInt32) {
    let target = lock.withLock { _ in peers[port].flatMap { peer in channels[peer].map { ($0, peer) } } }
    target?.0.deliver(target?.1 ?? 0)
  }

  fileprivate func unbind(_ port: UInt32) {
    lock.withLock { _ in
      channels[port] = nil
      if let peer = peers.removeValue(forKey: port) { peers[peer] = nil }
    }
  }

  // MARK: xenstore

  /// Ends xenstore: every connection hears of it.
  func endStore() {
    for store in lock.withLock({ _ in connections }) { store.end() }
  }

  fileprivate func connect(_ store: FakeStore) { lock.withLock { _ in connections.append(store) } }
  func read(_ path: String) -> [UInt8]? { lock.withLock { _ in tree[path] } }
  func text(_ path: String) -> String? { read(path).map { String(decoding: $0, as: UTF8.self) } }
  func write(_ path: String, _ value: String) { apply([path: Array(value.utf8)]) }
  func remove(_ path: String) { apply([path: nil]) }

  /// Writes and removes all at once, then fires the watches.
  fileprivate func apply(_ changes: [String: [UInt8]?]) {
    let (paths, stores) = lock.withLock { _ in
      var paths: [String] = []
      for (path, value) in changes {
        paths.append(path)
        if let value {
          tree[path] = value
        } else {
          for key in tree.keys.filter({ $0 == path || $0.hasPrefix(path + "/") }) {
            tree[key] = nil
            paths.append(key)
          }
        }
      }
      return (paths, connections)
    }
    for store in stores { store.fire(paths) }
  }
}

struct FakeDomain: XenSystem {
  let xen: FakeXen
  let domain: DomainID
  var description: String { "fake, domain \(domain)" }
  func openGrantSharing() throws(XenError) -> any GrantSharing { throw XenError(.unavailable, "not faked") }
  func openGrantMapping() throws(XenError) -> any GrantMapping { FakeMapping(xen) }
  func openEventChannels() throws(XenError) -> any EventChannels { FakeChannels(xen) }
  func openXenStore() throws(XenError) -> any XenStore { FakeStore(xen, domain) }
}

final class FakeMapping: GrantMapping {
  private let xen: FakeXen
  init(_ xen: FakeXen) { self.xen = xen }
  func map(
    _ references: Span<GrantRef>, of domain: DomainID, writable: Bool
  ) throws(XenError) -> UnsafeMutableRawPointer { try xen.map(references, writable: writable) }
  func map(
    _ reference: GrantRef, of domain: DomainID, writable: Bool, notification: UnmapNotification
  ) throws(XenError) -> UnsafeMutableRawPointer { try map([reference], of: domain, writable: writable) }
  func unmap(_ address: UnsafeMutableRawPointer, count: Int) throws(XenError) {
    try xen.unmap(address, count: count)
  }
  func copy(_ segments: inout MutableSpan<GrantCopySegment>) throws(XenError) {
    for index in segments.indices { xen.copy(&segments[index]) }
  }
}

final class FakeChannels: EventChannels {
  private let xen: FakeXen
  private let counter: Int32
  private let state = Mutex<(pending: [UInt32], masked: Set<UInt32>)>(([], []))
  init(_ xen: FakeXen) {
    self.xen = xen
    counter = eventfd(0, Int32(EFD_NONBLOCK | EFD_CLOEXEC))
  }
  deinit { close(counter) }
  var fileDescriptor: Int32 { counter }
  func bindUnbound(remote: DomainID) throws(XenError) -> EventChannelPort {
    EventChannelPort(try xen.bind(self, peer: nil))
  }
  func bindInterdomain(remote: DomainID, port: EventChannelPort) throws(XenError) -> EventChannelPort {
    EventChannelPort(try xen.bind(self, peer: port.rawValue))
  }
  func notify(_ port: EventChannelPort) throws(XenError) {
    try xen.payForNotification(self)
    xen.notify(port.rawValue)
  }
  func unbind(_ port: EventChannelPort) throws(XenError) { xen.unbind(port.rawValue) }
  func nextPending() throws(XenError) -> EventChannelPort? {
    state.withLock { state in
      guard let index = state.pending.firstIndex(where: { !state.masked.contains($0) }) else { return nil }
      let port = state.pending.remove(at: index)
      state.masked.insert(port)
      show(state)
      return EventChannelPort(port)
    }
  }
  func unmask(_ port: EventChannelPort) throws(XenError) {
    state.withLock { state in
      state.masked.remove(port.rawValue)
      show(state)
    }
  }
  fileprivate func deliver(_ port: UInt32) {
    state.withLock { state in
      if !state.pending.contains(port) { state.pending.append(port) }
      show(state)
    }
  }
  private func show(_ state: (pending: [UInt32], masked: Set<UInt32>)) {
    var value: UInt64 = 0
    if state.pending.contains(where: { !state.masked.contains($0) }) {
      value = 1
      _ = Glibc.write(counter, &value, 8)
    } else {
      _ = Glibc.read(counter, &value, 8)
    }
  }
}

final class FakeStore: XenStore {
  private struct State {
    var watches: [XenStoreWatchEvent] = []
    var events: [XenStoreWatchEvent] = []
    var isGone = false
  }
  private let xen: FakeXen
  private let domain: DomainID
  private let counter: Int32
  private let state = Mutex(State())
  init(_ xen: FakeXen, _ domain: DomainID) {
    self.xen = xen
    self.domain = domain
    counter = eventfd(0, Int32(EFD_NONBLOCK | EFD_CLOEXEC))
    xen.connect(self)
  }
  deinit { close(counter) }
  var fileDescriptor: Int32 { counter }
  func absolute(_ path: String) -> String { path.hasPrefix("/") ? path : "/local/domain/\(domain)/\(path)" }

  func transaction<Value>(
    _ body: (any XenStoreOperations) throws(XenError) -> Value
  ) throws(XenError) -> Value {
    let transaction = FakeTransaction(xen, self)
    let value = try body(transaction)
    xen.apply(transaction.changes)
    return value
  }
  func watch(_ path: String, token: String) throws(XenError) {
    state.withLock { state in
      state.watches.append(XenStoreWatchEvent(path: path, token: token))
      add(XenStoreWatchEvent(path: path, token: token), &state)
    }
  }
  func unwatch(_ path: String, token: String) throws(XenError) {
    state.withLock { state in
      state.watches.removeAll { $0.path == path && $0.token == token }
      state.events.removeAll { $0.token == token && absolute($0.path).hasPrefix(absolute(path)) }
    }
  }
  func nextWatchEvent() throws(XenError) -> XenStoreWatchEvent? {
    try state.withLock { state throws(XenError) in
      if state.isGone { throw XenError(.disconnected, "xenstore is gone") }
      if state.events.isEmpty { return nil }
      let event = state.events.removeFirst()
      if state.events.isEmpty {
        var value: UInt64 = 0
        _ = Glibc.read(counter, &value, 8)
      }
      return event
    }
  }
  var watchCount: Int { state.withLock { $0.watches.count } }
  fileprivate func fire(_ paths: [String]) {
    state.withLock { state in
      for path in paths {
        for watch in state.watches {
          let watched = absolute(watch.path)
          if path == watched || path.hasPrefix(watched + "/") {
            add(XenStoreWatchEvent(path: path, token: watch.token), &state)
          }
        }
      }
    }
  }
  fileprivate func end() {
    state.withLock { $0.isGone = true }
    var one: UInt64 = 1
    _ = Glibc.write(counter, &one, 8)
  }
  private func add(_ event: XenStoreWatchEvent, _ state: inout State) {
    state.events.append(event)
    var one: UInt64 = 1
    _ = Glibc.write(counter, &one, 8)
  }

  func readBytes(_ path: String) throws(XenError) -> [UInt8]? { xen.read(absolute(path)) }
  func write(_ path: String, _ value: [UInt8]) throws(XenError) { xen.apply([absolute(path): value]) }
  func list(_ path: String) throws(XenError) -> [String]? { nil }
  func makeDirectory(_ path: String) throws(XenError) { try write(path, []) }
  func remove(_ path: String) throws(XenError) { xen.apply([absolute(path): nil]) }
  func setPermissions(_ path: String, _ permissions: [XenStorePermission]) throws(XenError) {}
  func permissions(_ path: String) throws(XenError) -> [XenStorePermission]? { nil }
}

private final class FakeTransaction: XenStoreOperations {
  let xen: FakeXen
  let store: FakeStore
  var changes: [String: [UInt8]?] = [:]
  init(_ xen: FakeXen, _ store: FakeStore) {
    self.xen = xen
    self.store = store
  }
  func readBytes(_ path: String) throws(XenError) -> [UInt8]? {
    changes[store.absolute(path)] ?? xen.read(store.absolute(path))
  }
  func write(_ path: String, _ value: [UInt8]) throws(XenError) {
    changes.updateValue(value, forKey: store.absolute(path))
  }
  func list(_ path: String) throws(XenError) -> [String]? { nil }
  func makeDirectory(_ path: String) throws(XenError) { try write(path, []) }
  func remove(_ path: String) throws(XenError) { changes.updateValue(nil, forKey: store.absolute(path)) }
  func setPermissions(_ path: String, _ permissions: [XenStorePermission]) throws(XenError) {}
  func permissions(_ path: String) throws(XenError) -> [XenStorePermission]? { nil }
}
