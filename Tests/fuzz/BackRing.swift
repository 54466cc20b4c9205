// SPDX-License-Identifier: Apache-2.0
//
// The backend's engine against a hostile frontend: requests of any shape, any indices, grants that come and go,
// lists of segments that say anything, a storage that fails, refuses or would wait.

import Glibc
import Platform
import Xen

@testable import Blkif
@testable import XbdBack

func backRing(_ input: inout FuzzInput) {
  let fuzzer = BackRingFuzzer(&input)
  var steps = 0
  while !input.isAtEnd, steps < 300 {
    steps += 1
    fuzzer.step(&input)
  }
  fuzzer.end()
}

/// The frontend's pages.
///
/// Mapping gives memory of its own, so that AddressSanitizer sees every step beside it.
private final class Grants: GrantMapping, @unchecked Sendable {
  static let pageCount = 24
  /// What the ring is granted by, always; its memory is elsewhere.
  static let ring = GrantRef(UInt32(pageCount))
  let pages: UnsafeMutableRawPointer = .allocate(byteCount: (pageCount + 1) * Page.size, alignment: Page.size)
  /// 0 not granted, 1 read-only, 2 writable.
  var access = [UInt8](repeating: 2, count: pageCount + 1)
  private var mappings: [UnsafeMutableRawPointer: [Int]] = [:]
  var mappedCount: Int { mappings.count }

  init() { pages.initializeMemory(as: UInt8.self, repeating: 0, count: (Self.pageCount + 1) * Page.size) }
  deinit { pages.deallocate() }

  func page(_ index: Int) -> UnsafeMutableRawPointer { pages + index * Page.size }
  private func may(_ reference: GrantRef, write: Bool) -> Bool {
    reference.rawValue <= Self.pageCount && access[Int(reference.rawValue)] > (write ? 1 : 0)
  }

  func map(
    _ references: Span<GrantRef>, of domain: DomainID, writable: Bool
  ) throws(XenError) -> UnsafeMutableRawPointer {
    for index in references.indices where !may(references[index], write: writable) {
      throw XenError(.denied, "not granted")
    }
    let memory = UnsafeMutableRawPointer.allocate(
      byteCount: references.count * Page.size, alignment: Page.size)
    let mapped = references.indices.map { Int(references[$0].rawValue) }
    for (index, number) in mapped.enumerated() {
      memcpy(memory + index * Page.size, page(number), Page.size)
    }
    mappings[memory] = mapped
    return memory
  }
  func map(
    _ reference: GrantRef, of domain: DomainID, writable: Bool, notification: UnmapNotification
  ) throws(XenError) -> UnsafeMutableRawPointer { throw XenError(.invalid, "not asked for") }
  func unmap(_ address: UnsafeMutableRawPointer, count: Int) throws(XenError) {
    guard let mapped = mappings.removeValue(forKey: address), mapped.count == count else {
      violated("what is unmapped was mapped so")
    }
    for (index, page) in mapped.enumerated() where access[page] == 2 {
      memcpy(self.page(page), address + index * Page.size, Page.size)
    }
    address.deallocate()
  }
  func copy(_ segments: inout MutableSpan<GrantCopySegment>) throws(XenError) {
    for index in segments.indices {
      segments[index].status = copy(segments[index])
    }
  }
  private func copy(_ segment: GrantCopySegment) -> GrantCopySegment.Status {
    func place(_ place: GrantCopySegment.Place, write: Bool) -> UnsafeMutableRawPointer? {
      switch place {
      case .local(let pointer): return pointer
      case .granted(let reference, _, let offset):
        guard Int(offset) + Int(segment.byteCount) <= Page.size else {
          violated("a copy stays within its page: \(segment)")
        }
        return may(reference, write: write) ? page(Int(reference.rawValue)) + Int(offset) : nil
      }
    }
    guard let source = place(segment.source, write: false),
      let target = place(segment.destination, write: true)
    else { return .badReference }
    memmove(target, source, Int(segment.byteCount))
    return .okay
  }
}

/// A disk that does as it is told.
private final class FuzzStorage: Storage, @unchecked Sendable {
  let bytes: UnsafeMutableRawPointer = .allocate(byteCount: 64 << 10, alignment: 4096)
  var byteCount: UInt64 { 64 << 10 }
  var isReadOnly: Bool { false }
  var discardGranularity: Int? { 4096 }
  var canDiscardSecurely: Bool { true }
  var requiredAlignment: Int { 512 }
  var description: String { "fuzz" }
  var mood: UInt8 = 0

  init() { bytes.initializeMemory(as: UInt8.self, repeating: 0x11, count: 64 << 10) }
  deinit { bytes.deallocate() }

  func attempt(_ request: inout StorageRequest) -> StorageOutcome {
    mood & 3 == 1 ? .wouldBlock : perform(&request)
  }
  func perform(_ request: inout StorageRequest) -> StorageOutcome {
    if mood & 12 == 4 { return .failed(EIO) }
    if mood & 12 == 8 { return .notSupported }
    let (end, overflow) = request.byteOffset.addingReportingOverflow(request.byteCount)
    guard !overflow, end <= byteCount else { violated("a request is on the disk: \(request)") }
    guard request.operation == .read || request.operation == .write else { return .done }
    var total: UInt64 = 0
    for vector in request.vectors {
      guard let base = vector.iov_base, total + UInt64(vector.iov_len) <= request.byteCount else {
        violated("a request's memory is as long as its range")
      }
      let place = bytes + Int(request.byteOffset + total)
      if request.operation == .read {
        memcpy(base, place, vector.iov_len)
      } else {
        memcpy(place, base, vector.iov_len)
      }
      total += UInt64(vector.iov_len)
    }
    guard total == request.byteCount else { violated("a request's memory is as long as its range: \(total)") }
    return .done
  }
  func refreshByteCount() throws(StorageError) -> UInt64 { byteCount }
  func resize(to byteCount: UInt64) throws(StorageError) {}
}

private final class BackRingFuzzer {
  private static let workers = StorageWorkers(threadCount: 0)
  private let grants = Grants()
  private let storage = FuzzStorage()
  private let engine: UnsafeMutablePointer<QueueEngine>
  private let ring: UnsafeMutableRawPointer
  private let snapshot: UnsafeMutableRawPointer = .allocate(byteCount: Page.size, alignment: Page.size)
  private let layout: RingLayout
  private let capacity: UInt32
  private var producer: UInt32
  private var answered: UInt32
  /// Ids of requests that the backend has taken and not answered.
  private var pending: [UInt64: Int] = [:]
  private var isExact = true

  init(_ input: inout FuzzInput) {
    let shape = input.byte()
    let more = input.byte()
    let abi: ABI = shape & 1 == 0 ? .x86_64 : .x86_32
    layout = RingLayout(abi)
    ring = .allocate(byteCount: Page.size, alignment: Page.size)
    let start: UInt32 = shape & 2 == 0 ? 0 : 0xFFFF_FFF8
    ring.initializeMemory(as: UInt8.self, repeating: 0, count: Page.size)
    for index in 0..<4 {
      ring.storeBytes(of: start &+ UInt32(index & 1), toByteOffset: index * 4, as: UInt32.self)
    }
    producer = start
    answered = start
    var configuration = BackendConfiguration()
    configuration.execution = .colocated
    configuration.dataPath = shape & 4 == 0 ? .map : .grantCopy
    configuration.maxPersistentGrants = shape & 8 == 0 ? 3 : 64
    configuration.batchMapping = shape & 16 == 0
    configuration.maxIndirectSegments = shape & 32 == 0 ? 20 : 0
    configuration.echoIndirectOperation = shape & 64 != 0
    configuration.publishInterval = shape & 128 == 0 ? 8 : 0
    configuration.sectorSize = more & 1 == 0 ? 512 : 4096
    configuration.flush = more & 2 == 0 ? .on : .advertisedOnly
    configuration.purgePercent = 50
    configuration.purgeIntervalMilliseconds = 0
    let parameters = QueueParameters(
      frontend: DomainID(1), abi: abi, persistent: configuration.dataPath == .map && more & 4 == 0,
      configuration: configuration, readOnly: more & 8 != 0, discard: .on, secureDiscard: true)
    do {
      let back = try BackRing(pages: ring, pageCount: 1, abi: abi)
      capacity = back.capacity
      let slots = try PendingRequests(
        capacity: Int(back.capacity), maxSegments: 20, staging: configuration.dataPath == .grantCopy)
      let slow = try SlowLane(storage: storage, slots: slots, workers: Self.workers)
      engine = .allocate(capacity: 1)
      engine.initialize(
        to: QueueEngine(
          ring: back, ringReference: Grants.ring, parameters: parameters, storage: storage, grants: grants,
          sectorCount: 128, pending: slots, slow: slow))
    } catch {
      violated("there is room for a ring: \(error)")
    }
  }

  deinit {
    engine.deinitialize(count: 1)
    engine.deallocate()
    ring.deallocate()
    snapshot.deallocate()
  }

  func step(_ input: inout FuzzInput) {
    switch input.below(12) {
    case 0, 1, 2, 3: write(&input)
    case 4: run()
    case 5:
      ring.storeBytes(of: input.word(), toByteOffset: Int(input.half()) % (Page.size - 4), as: UInt32.self)
    case 6: ring.storeBytes(of: producer &+ UInt32(input.byte()) &- 64, as: UInt32.self)
    case 7: grants.access[input.below(Grants.pageCount)] = UInt8(input.below(3))
    case 8: list(&input)
    case 9: storage.mood = input.byte()
    case 10: if input.flag() { _ = engine.pointee.arm() } else { engine.pointee.purge() }
    default: engine.pointee.sectorCount = UInt64(input.below(129))
    }
  }

  func end() {
    storage.mood = 0
    for _ in 0..<4 { run() }
    if engine.pointee.violation == nil {
      guard engine.pointee.inFlight == 0, pending.isEmpty || !isExact else {
        violated(
          "every request is answered: \(engine.pointee.inFlight) in flight, \(pending.count) not answered")
      }
    }
    engine.pointee.unmapAll()
    guard grants.mappedCount == 0 else { violated("nothing stays mapped: \(grants.mappedCount)") }
  }

  /// Writes a request and shows it.
  private func write(_ input: inout FuzzInput) {
    let slot = ring + RingLayout.headerSize + Int(producer & (capacity - 1)) * layout.stride
    slot.initializeMemory(as: UInt8.self, repeating: 0, count: layout.stride)
    let operation = input.byte()
    let count = input.byte()
    slot.storeBytes(of: operation % 8, as: UInt8.self)
    // Few segments mostly; sometimes as many as a byte holds.
    slot.storeBytes(of: operation & 0x80 == 0 ? count % 13 : count, toByteOffset: 1, as: UInt8.self)
    slot.storeBytes(of: UInt64(producer) << 32 | UInt64(count), toByteOffset: layout.id, as: UInt64.self)
    let sector = operation & 0x40 == 0 ? UInt64(input.byte()) : input.long()
    slot.storeBytes(of: sector, toByteOffset: layout.sector, as: UInt64.self)
    if operation % 8 == BlockOperation.indirect.rawValue {
      slot.storeBytes(of: count & 1, toByteOffset: 1, as: UInt8.self)
      slot.storeBytes(of: UInt16(input.byte()) % 24, toByteOffset: 2, as: UInt16.self)
      slot.storeBytes(of: UInt32(input.byte()) % 26, toByteOffset: layout.indirectReferences, as: UInt32.self)
    } else if operation % 8 == BlockOperation.discard.rawValue {
      slot.storeBytes(of: input.long(), toByteOffset: layout.discardSectorCount, as: UInt64.self)
    } else {
      for index in 0..<min(Int(count % 13), BlkIf.maxDirectSegments) {
        segment(&input).store(to: slot + layout.segments + index * Segment.wireSize)
      }
    }
    producer &+= 1
    ring.storeBytes(of: producer, as: UInt32.self)
  }

  private func segment(_ input: inout FuzzInput) -> Segment {
    let sectors = input.byte()
    return Segment(
      reference: GrantRef(UInt32(input.byte()) % 26), firstSector: sectors & 7,
      // Beyond the page now and then.
      lastSector: sectors >> 3 & 0xF)
  }

  private func list(_ input: inout FuzzInput) {
    let page = grants.page(input.below(Grants.pageCount))
    for index in 0..<input.below(22) { segment(&input).store(to: page + index * Segment.wireSize) }
  }

  /// Lets the engine run, and holds its answers against what it took.
  private func run() {
    // The engine copies what it takes, and its answers overwrite it.
    let before = snapshot
    before.copyMemory(from: ring, byteCount: Page.size)
    // Who asks for more than the ring holds has answers and requests written over each other.
    if before.load(as: UInt32.self) &- answered > capacity { isExact = false }
    let first = engine.pointee.ring.consumer
    _ = engine.pointee.run()
    var index = first
    while index != engine.pointee.ring.consumer {
      let slot = before + RingLayout.headerSize + Int(index & (capacity - 1)) * layout.stride
      pending[slot.loadUnaligned(fromByteOffset: layout.id, as: UInt64.self), default: 0] += 1
      index &+= 1
    }
    // Not `rsp_prod`, which the frontend may have changed.
    let responses = engine.pointee.ring.published
    if !isExact { answered = responses }
    while answered != responses {
      let slot = ring + RingLayout.headerSize + Int(answered & (capacity - 1)) * layout.stride
      let id = slot.loadUnaligned(as: UInt64.self)
      guard let count = pending[id] else { violated("each request is answered once at most: \(id)") }
      pending[id] = count > 1 ? count - 1 : nil
      let padding = slot.load(fromByteOffset: 9, as: UInt8.self)
      let more = layout.stride == 112 ? slot.load(fromByteOffset: 12, as: UInt32.self) : 0
      guard padding == 0, more == 0 else { violated("a response's padding is zero") }
      answered &+= 1
    }
  }
}
