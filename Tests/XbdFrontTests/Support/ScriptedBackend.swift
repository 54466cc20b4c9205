// SPDX-License-Identifier: Apache-2.0
//
// A backend over the frontend's own pages, with a disk in memory, that does what a test tells it to: it can serve,
// refuse, hold, reorder, lie. It checks what a strict backend would of every request.

import Blkif
import Glibc
import Platform
import Xen

@testable import XbdFront

/// A request as the backend saw it.
struct TakenRequest {
  var id: UInt64
  /// As in the slot.
  var wireOperation: UInt8
  /// The operation inside an indirect request, else the same.
  var operation: UInt8
  var isIndirect: Bool
  var sector: UInt64
  var handle: UInt16
  var segments: [Segment]
  var discardSectors: UInt64
  /// The whole slot.
  var slot: [UInt8]
  var byteCount: Int { segments.reduce(0) { $0 + $1.sectorCount * 512 } }
}

/// What becomes of a request.
enum Verdict {
  /// Done properly.
  case serve
  /// Nothing is done; this is the answer.
  case refuse(Int16)
  /// Taken, and not answered before `answerHeld`.
  case hold
}

/// A disk in memory behind a ring.
final class ScriptedBackend: InlineBackend, @unchecked Sendable {
  // SAFETY: used by one thread at a time; tests that use two threads give it to one of them.
  private var ring: BackRing
  let ringBase: UnsafeMutableRawPointer
  let layout: RingLayout
  let capacity: UInt32
  let grants: FakeGrants
  let disk: UnsafeMutableBufferPointer<UInt8>
  let ownsDisk: Bool
  var sectorSize = 512
  var discardGranularity = 512
  /// Decides about each request.
  var judge: (TakenRequest) -> Verdict = { _ in .serve }
  /// What is done to the pages of a read before the answer, after the data is in them.
  var spoil: (TakenRequest) -> Void = { _ in }
  /// Which operation an indirect request's response carries.
  var answersOuterOperation = false
  /// Every request taken, when asked for.
  var keepsLog = true
  var log: [TakenRequest] = []
  var held: [TakenRequest] = []
  /// Rules that the frontend broke; a test expects none.
  var complaints: [String] = []
  /// Bytes discarded read as this afterwards.
  var maxOutstanding = 0
  private let scratch: UnsafeMutableRawPointer
  /// Held requests to be answered by the next `run`, as a backend with slow storage would.
  private var due: [TakenRequest] = []
  private let storageIsReady: EventCounter
  var wakeDescriptor: Int32 { storageIsReady.fileDescriptor }
  /// Called when the frontend asked for a notification.
  var notifyFrontend: () -> Void = {}

  init(
    ringPages: SharedPages, abi: ABI = .native, grants: FakeGrants, diskBytes: Int,
    sharing shared: UnsafeMutableBufferPointer<UInt8>? = nil
  ) throws {
    storageIsReady = try EventCounter()
    ring = try BackRing(pages: ringPages.baseAddress, pageCount: ringPages.pageCount, abi: abi)
    ringBase = ringPages.baseAddress
    layout = RingLayout(abi)
    capacity = ring.capacity
    self.grants = grants
    ownsDisk = shared == nil
    disk = shared ?? .allocate(capacity: max(diskBytes, 1))
    if shared == nil { disk.initialize(repeating: 0) }
    scratch = .allocate(byteCount: 112, alignment: 8)
  }

  deinit {
    if ownsDisk { disk.deallocate() }
    scratch.deallocate()
  }

  // MARK: Serving

  /// Takes and judges whatever is in the ring.
  func run() -> Bool {
    var progress = false
    if !due.isEmpty {
      storageIsReady.drain()
      let requests = due
      due = []
      for request in requests { answer(request, serve(request)) }
      publish()
      progress = true
    }
    while let count = try? ring.availableRequests(), count > 0 {
      maxOutstanding = max(maxOutstanding, Int(ring.outstanding + count))
      for _ in 0..<count {
        let request = take()
        progress = true
        switch judge(request) {
        case .serve: answer(request, serve(request))
        case .refuse(let status): answer(request, status)
        case .hold: held.append(request)
        }
      }
      publish()
    }
    return progress
  }

  /// Asks to be notified; true when there is nothing to do.
  func arm() -> Bool { ring.armNotification() }

  /// Lets the next `run` serve requests that were held: by their index in `held`, in that order.
  func answerHeld(_ indices: [Int]? = nil) {
    let order = indices ?? Array(held.indices)
    let requests = order.map { held[$0] }
    held = held.indices.filter { !order.contains($0) }.map { held[$0] }
    due += requests
    storageIsReady.signal()
  }
  /// Whether the next `run` has something to do although nothing was asked.
  var isDue: Bool { !due.isEmpty }

  private func take() -> TakenRequest {
    let wire = ring.takeRequest(into: scratch)
    let slot = Array(UnsafeRawBufferPointer(start: scratch, count: layout.stride))
    var request = TakenRequest(
      id: wire.id, wireOperation: wire.operation, operation: wire.operation, isIndirect: false,
      sector: wire.sector, handle: wire.handle, segments: [], discardSectors: 0, slot: slot)
    switch wire.operation {
    case 6:
      request.isIndirect = true
      request.operation = wire.indirectOperation
      request.handle = wire.indirectHandle
      let count = wire.indirectSegmentCount
      if count == 0 || count > 4096 { complaints.append("an indirect request of \(count) segments") }
      for index in 0..<min(count, 4096) {
        guard let page = grants.page(wire.indirectPage(index / 512)) else {
          complaints.append("an indirect page that is not shared")
          break
        }
        request.segments.append(Segment(loading: page + (index % 512) * 8))
      }
    case 5: request.discardSectors = wire.discardSectorCount
    default:
      if wire.segmentCount > 11 { complaints.append("a direct request of \(wire.segmentCount) segments") }
      for index in 0..<min(wire.segmentCount, 11) { request.segments.append(wire.segment(index)) }
    }
    check(request)
    if keepsLog { log.append(request) }
    return request
  }

  private func check(_ request: TakenRequest) {
    let perSector = UInt64(sectorSize / 512)
    if request.sector % perSector != 0 { complaints.append("sector \(request.sector) is not aligned") }
    switch request.operation {
    case 0, 1:
      if request.segments.isEmpty { complaints.append("a request for data without any") }
      if request.byteCount % sectorSize != 0 { complaints.append("\(request.byteCount) bytes is no sector") }
      if Set(request.segments.map(\.reference)).count != request.segments.count {
        complaints.append("the same grant twice in a request")
      }
      for (index, segment) in request.segments.enumerated() {
        if !segment.isValid { complaints.append("a segment \(segment)") }
        if grants.page(segment.reference) == nil { complaints.append("a page that is not shared") }
        let inside = index > 0 && index + 1 < request.segments.count
        if inside, segment.sectorCount != 8 { complaints.append("a hole in the middle") }
      }
      if request.sector * 512 + UInt64(request.byteCount) > UInt64(disk.count) {
        complaints.append("a request beyond the end")
      }
    case 2, 3:
      if !request.segments.isEmpty || request.sector != 0 { complaints.append("a flush with data") }
    case 5:
      if request.discardSectors == 0 { complaints.append("a discard of nothing") }
      if (request.sector + request.discardSectors) * 512 > UInt64(disk.count) {
        complaints.append("a discard beyond the end")
      }
    default: complaints.append("operation \(request.operation)")
    }
  }

  /// Does what the request asks.
  func serve(_ request: TakenRequest) -> Int16 {
    guard let base = disk.baseAddress else { return -1 }
    var position = Int(request.sector) * 512
    switch request.operation {
    case 0, 1:
      for segment in request.segments where segment.isValid {
        guard let page = grants.page(segment.reference) else { return -1 }
        let length = segment.sectorCount * 512
        guard position + length <= disk.count else { return -1 }
        let address = page + Int(segment.firstSector) * 512
        if request.operation == 0 {
          memcpy(address, base + position, length)
        } else {
          memcpy(base + position, address, length)
        }
        position += length
      }
      if request.operation == 0 { spoil(request) }
      return 0
    case 5:
      memset(base + position, 0xDD, Int(request.discardSectors) * 512)
      return 0
    default: return 0
    }
  }

  func answer(_ request: TakenRequest, _ status: Int16) {
    let operation = request.isIndirect && answersOuterOperation ? 6 : request.operation
    ring.push(id: request.id, operation: operation, status: status)
  }

  func publish() {
    guard ring.hasUnpublished else { return }
    if ring.publish() == .required { notifyFrontend() }
  }

  // MARK: Misbehaving

  /// Writes a response into a slot, whatever is there.
  func forge(at index: UInt32, id: UInt64, operation: UInt8, status: Int16) {
    let address = ringBase + 64 + Int(index & (capacity - 1)) * layout.stride
    memset(address, 0xA5, 16)
    address.storeBytes(of: UInt32(truncatingIfNeeded: id), as: UInt32.self)
    address.storeBytes(of: UInt32(truncatingIfNeeded: id >> 32), toByteOffset: 4, as: UInt32.self)
    address.storeBytes(of: operation, toByteOffset: 8, as: UInt8.self)
    address.storeBytes(of: status, toByteOffset: 10, as: Int16.self)
  }

  /// One of the four shared indices.
  func index(_ word: SharedWord) -> UInt32 { ringBase.load(fromByteOffset: word.rawValue, as: UInt32.self) }
  func setIndex(_ word: SharedWord, _ value: UInt32) {
    ringBase.storeBytes(of: value, toByteOffset: word.rawValue, as: UInt32.self)
  }

  enum SharedWord: Int {
    case requestProducer = 0
    case requestEvent = 4
    case responseProducer = 8
    case responseEvent = 12
  }
}
