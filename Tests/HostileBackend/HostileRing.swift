// SPDX-License-Identifier: Apache-2.0
//
// A mapped ring without any rule: every word and every slot can be read and written at any time. Native layout
// (blkif.h on x86_64 and arm).

internal import Glibc
internal import Synchronization

/// The ring as a backend sees it that keeps no promise.
final class HostileRing: @unchecked Sendable {
  // SAFETY: the words are accessed as atomics; slots are bytes that both sides may change at any time.
  static let stride = 112
  let base: UnsafeMutableRawPointer
  let pageCount: Int
  let capacity: UInt32
  /// Requests taken.
  var consumer: UInt32 = 0
  /// Responses written.
  var producer: UInt32 = 0

  enum Word: Int { case requestProducer = 0, requestEvent = 4, responseProducer = 8, responseEvent = 12 }

  init(base: UnsafeMutableRawPointer, pageCount: Int) {
    self.base = base
    self.pageCount = pageCount
    var entries: UInt32 = 1
    while Int(entries) * 2 * Self.stride + 64 <= pageCount * 4096 { entries *= 2 }
    capacity = entries
    producer = self[.responseProducer]
    consumer = producer
  }

  private func word(_ offset: Int) -> UnsafePointer<Atomic<UInt32>> {
    UnsafePointer((base + offset).assumingMemoryBound(to: Atomic<UInt32>.self))
  }
  subscript(_ word: Word) -> UInt32 {
    get { self.word(word.rawValue).pointee.load(ordering: .acquiring) }
    set { self.word(word.rawValue).pointee.store(newValue, ordering: .sequentiallyConsistent) }
  }
  func store(_ value: UInt32, at offset: Int) { word(offset).pointee.store(value, ordering: .relaxed) }
  func slot(_ index: UInt32) -> UnsafeMutableRawPointer { base + slotOffset(index) }
  func slotOffset(_ index: UInt32) -> Int { 64 + Int(index & (capacity - 1)) * Self.stride }

  /// Requests that wait; nothing when the frontend's index makes no sense (or somebody has scribbled over it).
  var available: UInt32 {
    let count = self[.requestProducer] &- consumer
    return count <= capacity &- (consumer &- producer) ? count : 0
  }

  func take() -> HostileRequest {
    var bytes = [UInt8](repeating: 0, count: Self.stride)
    bytes.withUnsafeMutableBytes { copy in
      _ = copy.baseAddress.map { memcpy($0, slot(consumer), Self.stride) }
    }
    let request = HostileRequest(slot: bytes, index: consumer)
    consumer &+= 1
    return request
  }

  /// Writes a response behind the last one.
  func respond(id: UInt64, operation: UInt8, status: Int16, padding: UInt8) {
    let offset = slotOffset(producer)
    let rubbish = UInt32(padding) * 0x0101_0101
    store(UInt32(truncatingIfNeeded: id), at: offset)
    store(UInt32(truncatingIfNeeded: id >> 32), at: offset + 4)
    store(
      UInt32(operation) | UInt32(padding) << 8 | UInt32(UInt16(bitPattern: status)) << 16, at: offset + 8)
    store(rubbish, at: offset + 12)
    if padding != 0 { memset(base + offset + 16, Int32(padding), Self.stride - 16) }
    producer &+= 1
  }
}

/// A request as it lay in the ring.
public struct HostileRequest: Sendable {
  public struct Part: Sendable {
    public var reference: UInt32
    public var first: UInt8
    public var last: UInt8
  }

  /// The whole slot.
  public let slot: [UInt8]
  /// The ring's index.
  public let index: UInt32
  /// With the references of indirect pages looked up.
  public var segments: [Part] = []

  init(slot: [UInt8], index: UInt32) {
    self.slot = slot
    self.index = index
    if wireOperation <= 1 {
      for place in 0..<min(Int(slot[1]), 11) { segments.append(part(24 + 8 * place)) }
    }
  }

  func part(_ offset: Int) -> Part {
    Part(reference: load(offset), first: slot[offset + 4], last: slot[offset + 5])
  }
  func load<Value: FixedWidthInteger>(_ offset: Int) -> Value {
    slot.withUnsafeBytes { $0.loadUnaligned(fromByteOffset: offset, as: Value.self) }
  }
  public var wireOperation: UInt8 { slot[0] }
  public var isIndirect: Bool { wireOperation == 6 }
  public var operation: UInt8 { isIndirect ? slot[1] : wireOperation }
  public var id: UInt64 { load(8) }
  public var sector: UInt64 { load(16) }
  public var discardSectors: UInt64 { load(24) }
  public var indirectSegmentCount: Int { isIndirect ? Int(load(2) as UInt16) : 0 }
  public func indirectReference(_ page: Int) -> UInt32 { load(28 + 4 * page) }
  public var indirectPageCount: Int { (indirectSegmentCount + 511) / 512 }
}
