// SPDX-License-Identifier: Apache-2.0
//
// What a queue remembers of a request between taking it and answering it. One slot for every slot of the ring;
// their memory is set aside at the start and becomes real as it is first used.

internal import Blkif
internal import Glibc
internal import Platform
internal import SystemPackage
internal import Xen

/// A request in work.
struct PendingRequest {
  /// What the response carries.
  var id: UInt64 = 0
  var responseOperation: UInt8 = 0
  /// What the storage has to do, around it and how it went.
  var work: StorageRequest
  var hasBody = false
  var flushBefore = false
  var flushAfter = false
  var outcome: StorageOutcome = .done
  /// Segments in the slot's list.
  var segmentCount = 0
  /// Kept grants in use by this request.
  var useCount = 0
  /// Mappings made for this request.
  var transientCount = 0
  /// What goes wrong with it on purpose.
  var fault = SlotFault.none
  /// The data lie in the slot's staging memory (grant copy).
  var isStaged = false

  /// Begins another request.
  @inline(__always)
  mutating func begin(id: UInt64, operation: UInt8, fault: SlotFault) {
    self.id = id
    responseOperation = operation
    hasBody = false
    flushBefore = false
    flushAfter = false
    isStaged = false
    self.fault = fault
  }
}

/// What goes wrong with a request that is in work, in one word.
struct SlotFault: Equatable {
  let rawValue: UInt32
  static let none = SlotFault(rawValue: 0)
  static let late = SlotFault(rawValue: .max)
  static let drop = SlotFault(rawValue: .max - 1)
  /// Done by a worker after so many milliseconds.
  static func delay(_ milliseconds: UInt32) -> SlotFault { SlotFault(rawValue: milliseconds) }

  /// Milliseconds to sleep first.
  var delay: UInt32 { self == .late || self == .drop ? 0 : rawValue }
}

/// The list of one slot, of as many elements as a request can have segments.
@safe struct SlotList<Element> {
  // SAFETY: `count` elements of a region of `PendingRequests`, which whoever uses the list holds. Memory of the system,
  // zeroed; an element is written before it is read. The elements are trivial.
  private let base: UnsafeMutablePointer<Element>
  let count: Int

  @inline(__always)
  fileprivate init(_ region: borrowing MappedRegion, _ slot: UInt32, capacity: Int, count: Int) {
    precondition(Int(slot) < capacity, "no such slot")
    // SAFETY: the region has `capacity` lists of `count` elements.
    unsafe base =
      region.baseAddress.assumingMemoryBound(to: Element.self) + Int(slot) &* count
    self.count = count
  }

  subscript(index: Int) -> Element {
    // SAFETY of both: checked, in release builds too.
    @inline(__always) get {
      checkBound(index)
      return unsafe base[index]
    }
    @inline(__always) nonmutating set {
      checkBound(index)
      unsafe base[index] = newValue
    }
  }

  @inline(__always)
  private func checkBound(_ index: Int) {
    precondition(UInt(bitPattern: index) < UInt(bitPattern: count), "more than a request can have")
  }

  /// The first elements, as the storage and the mapping want them.
  ///
  /// - Parameters:
  ///   - first: where to begin.
  ///   - count: how many; they have to be there.
  /// - Returns: memory that lives as long as the slots do.
  @inline(__always)
  func buffer(from first: Int = 0, count: Int) -> UnsafeMutableBufferPointer<Element> {
    precondition(first >= 0 && count >= 0 && first <= self.count - count, "more than a request can have")
    // SAFETY: checked.
    return unsafe UnsafeMutableBufferPointer(start: base + first, count: count)
  }
}

/// The slots of a queue and their lists.
///
/// A slot and its lists are only used by whoever has the slot: the queue's thread, or the worker that it was given to.
@safe final class PendingRequests: @unchecked Sendable {
  let capacity: Int
  let maxSegments: Int
  // SAFETY: `capacity` elements, initialised by the initialiser and given back in the deinit; only the subscript goes there.
  // No `Table`: that would be one variable, and workers use their slots while the queue uses others.
  private let slots: UnsafeMutablePointer<PendingRequest>
  private let vectorMemory: MappedRegion
  private let segmentMemory: MappedRegion
  private let useMemory: MappedRegion
  private let transientMemory: MappedRegion
  private let stagingMemory: MappedRegion?

  init(capacity: Int, maxSegments: Int, staging: Bool) throws(Errno) {
    self.capacity = capacity
    self.maxSegments = maxSegments
    let places = capacity * maxSegments
    // SAFETY: only a type's size.
    unsafe vectorMemory = try MappedRegion(anonymous: places * MemoryLayout<iovec>.stride)
    segmentMemory = try MappedRegion(anonymous: places * MemoryLayout<Segment>.stride)
    useMemory = try MappedRegion(anonymous: places * MemoryLayout<UInt32>.stride)
    transientMemory = try MappedRegion(anonymous: places * MemoryLayout<TransientMapping>.stride)
    stagingMemory = staging ? try MappedRegion(anonymous: places * Page.size) : nil
    // SAFETY: new memory, initialised to its end.
    unsafe slots = .allocate(capacity: capacity)
    unsafe slots.initialize(
      repeating: PendingRequest(work: StorageRequest(.flush, byteOffset: 0, byteCount: 0)), count: capacity)
  }

  deinit {
    // SAFETY: nobody has a slot any more; the elements are trivial.
    unsafe slots.deallocate()
  }

  subscript(slot: UInt32) -> PendingRequest {
    // SAFETY of both: checked, in release builds too; the caller has the slot, and nobody else uses it meanwhile.
    @inline(__always) unsafeAddress {
      checkSlot(slot)
      return unsafe UnsafePointer(slots + Int(slot))
    }
    @inline(__always) unsafeMutableAddress {
      checkSlot(slot)
      return unsafe slots + Int(slot)
    }
  }

  @inline(__always)
  private func checkSlot(_ slot: UInt32) {
    precondition(Int(slot) < capacity, "no such slot")
  }

  @inline(__always)
  func vectors(_ slot: UInt32) -> SlotList<iovec> {
    // SAFETY: a list of addresses that come from `MappedPage` and from the staging memory.
    unsafe SlotList(vectorMemory, slot, capacity: capacity, count: maxSegments)
  }
  @inline(__always)
  func segments(_ slot: UInt32) -> SlotList<Segment> {
    SlotList(segmentMemory, slot, capacity: capacity, count: maxSegments)
  }
  /// Entries of `PersistentGrants`.
  @inline(__always)
  func uses(_ slot: UInt32) -> SlotList<UInt32> {
    SlotList(useMemory, slot, capacity: capacity, count: maxSegments)
  }
  @inline(__always)
  func transients(_ slot: UInt32) -> SlotList<TransientMapping> {
    SlotList(transientMemory, slot, capacity: capacity, count: maxSegments)
  }
  /// The slot's staging memory, `maxSegments` pages; nil without grant copy.
  func staging(_ slot: UInt32) -> UnsafeMutableRawPointer? {
    checkSlot(slot)
    // A borrow of an optional ~Copyable property, not a consumption.
    switch stagingMemory {
    // SAFETY: a slot below `capacity` has its pages within the region.
    case .some(let region): return unsafe region.baseAddress + Int(slot) &* maxSegments &* Page.size
    case .none: return nil
    }
  }
}
