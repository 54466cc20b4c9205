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

/// A mapping made for one request.
struct TransientMapping {
  var address: UnsafeMutableRawPointer
  var count: Int
}

/// The slots of a queue and their lists.
final class PendingRequests: @unchecked Sendable {
  let capacity: Int
  let maxSegments: Int
  let slots: UnsafeMutablePointer<PendingRequest>
  private let vectorMemory: MappedRegion
  private let segmentMemory: MappedRegion
  private let useMemory: MappedRegion
  private let transientMemory: MappedRegion
  private let stagingMemory: MappedRegion?

  init(capacity: Int, maxSegments: Int, staging: Bool) throws(Errno) {
    self.capacity = capacity
    self.maxSegments = maxSegments
    let places = capacity * maxSegments
    vectorMemory = try MappedRegion(anonymous: places * MemoryLayout<iovec>.stride)
    segmentMemory = try MappedRegion(anonymous: places * MemoryLayout<Segment>.stride)
    useMemory = try MappedRegion(anonymous: places * MemoryLayout<UInt32>.stride)
    transientMemory = try MappedRegion(anonymous: places * MemoryLayout<TransientMapping>.stride)
    stagingMemory = staging ? try MappedRegion(anonymous: places * Page.size) : nil
    slots = .allocate(capacity: capacity)
    slots.initialize(
      repeating: PendingRequest(work: StorageRequest(.flush, byteOffset: 0, byteCount: 0)), count: capacity)
  }

  deinit {
    slots.deallocate()
  }

  // SAFETY: each region holds `capacity * maxSegments` trivial elements; a slot's stretch is only used by whoever
  // has the slot: the queue's thread, or the worker that it was given to.
  @inline(__always)
  func vectors(_ slot: Int) -> UnsafeMutablePointer<iovec> {
    vectorMemory.baseAddress.assumingMemoryBound(to: iovec.self) + slot &* maxSegments
  }
  @inline(__always)
  func segments(_ slot: Int) -> UnsafeMutablePointer<Segment> {
    segmentMemory.baseAddress.assumingMemoryBound(to: Segment.self) + slot &* maxSegments
  }
  @inline(__always)
  func uses(_ slot: Int) -> UnsafeMutablePointer<UInt32> {
    useMemory.baseAddress.assumingMemoryBound(to: UInt32.self) + slot &* maxSegments
  }
  @inline(__always)
  func transients(_ slot: Int) -> UnsafeMutablePointer<TransientMapping> {
    transientMemory.baseAddress.assumingMemoryBound(to: TransientMapping.self) + slot &* maxSegments
  }
  /// The slot's staging memory, `maxSegments` pages; nil without grant copy.
  func staging(_ slot: Int) -> UnsafeMutableRawPointer? {
    // A borrow of an optional ~Copyable property, not a consumption.
    switch stagingMemory {
    case .some(let region): region.baseAddress + slot &* maxSegments &* Page.size
    case .none: nil
    }
  }
}
