// SPDX-License-Identifier: Apache-2.0
//
// A frontend for tests: the toolstack's nodes, a ring, and requests with every field in the test's hands.

import Blkif
import Glibc
import Platform
import Testing
import Xen

@testable import XbdBack

/// Waits, generously, until something has come true.
func eventually(within seconds: UInt64 = 30, _ condition: () throws -> Bool) rethrows -> Bool {
  let deadline = MonotonicClock.nanoseconds() + seconds * 1_000_000_000
  while try !condition() {
    if MonotonicClock.nanoseconds() > deadline { return false }
    usleep(500)
  }
  return true
}

/// Something that a test needs and did not get.
struct TestFailure: Error { let what: String }

final class TestFrontend {
  static let back = "/local/domain/0/backend/vbd/1/51712"
  static let front = "/local/domain/1/device/vbd/51712"

  let xen: FakeXen
  let channels: FakeChannels
  let abi: ABI
  /// The ring takes the first pages; `data` are those behind them.
  private(set) var ringPages = 1
  private var ring: FrontRing?
  private(set) var port = EventChannelPort(0)
  var device: BackendDevice?
  var responses: [UInt64: WireResponse] = [:]
  var answered: [UInt64] = []
  private var nextID: UInt64 = 0x1_0000_0001
  var start: UInt32 = 0
  /// Notifications that the backend asked for.
  private(set) var notifications = 0

  init(abi: ABI = .native, pageCount: Int = 2048) {
    xen = FakeXen(pageCount: pageCount)
    channels = FakeChannels(xen)
    self.abi = abi
    createNodes()
  }

  var dataPage: UInt32 { UInt32(ringPages) }

  /// What the toolstack writes.
  func createNodes() {
    xen.write("\(Self.back)/frontend", Self.front)
    xen.write("\(Self.back)/frontend-id", "1")
    xen.write("\(Self.back)/online", "1")
    xen.write("\(Self.back)/state", "1")
    xen.write("\(Self.front)/backend", Self.back)
    xen.write("\(Self.front)/backend-id", "0")
    xen.write("\(Self.front)/state", "1")
  }

  func node(_ key: String) -> String? { xen.text("\(Self.back)/\(key)") }
  func set(_ key: String, _ value: String) { xen.write("\(Self.front)/\(key)", value) }
  var backState: String? { node("state") }
  var errorNode: String? { xen.text("/local/domain/0/error/backend/vbd/1/51712/error") }

  /// Writes the ring's nodes and goes to Initialised.
  func publish(order: Int = 0, persistent: Bool = true, start: UInt32 = 0) throws {
    self.start = start
    ringPages = 1 << order
    xen.grant(0..<UInt32(xen.pageCount))
    ring = FrontRing(pages: xen.pages, pageCount: ringPages, abi: abi, startingAt: start)
    port = try channels.bindUnbound(remote: .dom0)
    if order == 0 {
      set("ring-ref", "0")
    } else {
      set("ring-page-order", String(order))
      for page in 0..<ringPages { set("ring-ref\(page)", String(page)) }
    }
    set("event-channel", String(port.rawValue))
    set("protocol", abi.rawValue)
    set("feature-persistent", persistent ? "1" : "0")
    set("state", "3")
  }

  /// Offers a device and connects to it.
  func connect(
    _ backend: Backend, _ storage: any Storage, _ configuration: BackendConfiguration = .colocated,
    order: Int = 0, persistent: Bool = true, start: UInt32 = 0
  ) throws {
    device = try backend.add(directory: Self.back, storage: storage, configuration: configuration)
    guard backState == "2" else { throw TestFailure(what: "the backend is in state \(backState ?? "none")") }
    try publish(order: order, persistent: persistent, start: start)
    guard eventually({ backState == "4" }) else {
      throw TestFailure(what: "not connected: \(errorNode ?? "no error")")
    }
    set("state", "4")
  }

  var capacity: Int { Int(ring?.capacity ?? 0) }
  var freeSlots: Int { Int(ring?.freeSlots ?? 0) }

  func newID() -> UInt64 {
    nextID += 0x1_0000_0001
    return nextID
  }

  /// Enqueues a request; `fill` writes it.
  func enqueue(_ fill: (Blkif.RequestSlot, UInt64) -> Void) -> UInt64 {
    let id = newID()
    if let slot = ring?.enqueue() { fill(slot, id) }
    return id
  }

  func enqueue(
    _ operation: BlockOperation, sector: UInt64, _ segments: [Segment], declared: Int? = nil
  ) -> UInt64 {
    enqueue { slot, id in
      slot.setDirect(
        operation, id: id, handle: 51712, sector: sector, segmentCount: declared ?? segments.count)
      for (index, segment) in segments.enumerated() { slot.setSegment(index, segment) }
    }
  }

  /// Shows the backend what was enqueued.
  func publishRequests() throws {
    if ring?.publish() == .required {
      notifications += 1
      try channels.notify(port)
    }
  }

  /// Asks for a notification of the next response.
  func arm() -> Bool { ring?.armNotification() ?? false }

  /// Takes the responses there are.
  func collect() throws {
    guard let available = try ring?.availableResponses() else { return }
    for _ in 0..<available {
      guard let response = ring?.takeResponse() else { return }
      responses[response.id] = response
      answered.append(response.id)
    }
  }

  /// Publishes and runs the backend until a request is answered.
  func wait(for id: UInt64) throws -> WireResponse {
    try publishRequests()
    let done = try eventually {
      _ = device?.colocatedQueue(0)?.run()
      try collect()
      return responses[id] != nil
    }
    guard done, let response = responses.removeValue(forKey: id) else { throw TestFailure(what: "no answer") }
    return response
  }

  func perform(
    _ operation: BlockOperation, sector: UInt64 = 0, _ segments: [Segment] = [], declared: Int? = nil
  ) throws -> Int16 {
    try wait(for: enqueue(operation, sector: sector, segments, declared: declared)).status
  }

  /// Lays segments into indirect pages, beginning at `page`.
  func fillIndirect(_ segments: [Segment], page: UInt32) {
    for (index, segment) in segments.enumerated() {
      segment.store(to: xen.page(page) + index * Segment.wireSize)
    }
  }

  func enqueueIndirect(
    _ operation: BlockOperation, sector: UInt64, _ segments: [Segment], page: UInt32, declared: Int? = nil
  ) -> UInt64 {
    fillIndirect(segments, page: page)
    return enqueue { slot, id in
      slot.setIndirect(
        operation, id: id, handle: 51712, sector: sector, segmentCount: declared ?? segments.count)
      for index in 0..<BlkIf.indirectPages(forSegments: max(1, segments.count)) {
        slot.setIndirectPage(index, GrantRef(page + UInt32(index)))
      }
    }
  }

  func discard(sector: UInt64, count: UInt64, secure: Bool = false) throws -> Int16 {
    try wait(
      for: enqueue { slot, id in
        slot.setDiscard(id: id, handle: 51712, sector: sector, sectorCount: count, secure: secure)
      }
    ).status
  }

  /// Overwrites one of the ring's indices, as a hostile frontend can.
  func writeRequestProducer(_ value: UInt32) { xen.pages.storeBytes(of: value, as: UInt32.self) }
  /// Overwrites bytes of the slot that was enqueued last.
  func poke(_ value: UInt8, at offset: Int) {
    let stride = abi == .x86_32 ? 108 : 112
    let last = (start &+ UInt32(enqueuedCount) &- 1) & UInt32(capacity - 1)
    xen.pages.storeBytes(of: value, toByteOffset: 64 + Int(last) * stride + offset, as: UInt8.self)
  }
  private var enqueuedCount: Int { Int((nextID &- 0x1_0000_0001) / 0x1_0000_0001) }
}

/// A whole page.
func page(_ reference: UInt32) -> Segment {
  Segment(reference: GrantRef(reference), firstSector: 0, lastSector: 7)
}

extension BackendConfiguration {
  static var colocated: Self {
    var configuration = Self()
    configuration.execution = .colocated
    return configuration
  }
  static func colocated(_ change: (inout Self) -> Void) -> Self {
    var configuration = colocated
    change(&configuration)
    return configuration
  }
}

/// Runs a test with a backend over a fresh fake, and ends it.
func withBackend(abi: ABI = .native, _ body: (TestFrontend, Backend) throws -> Void) throws {
  let frontend = TestFrontend(abi: abi)
  let backend = try Backend(system: FakeDomain(xen: frontend.xen, domain: .dom0), logger: .quiet)
  defer { backend.stop() }
  try body(frontend, backend)
}
