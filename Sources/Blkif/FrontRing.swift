// SPDX-License-Identifier: Apache-2.0
//
// The frontend's end of a ring: it enqueues requests and takes responses, and can do nothing else.
//
//   enqueue … enqueue ──► publish ──► (notify the backend if asked)
//   availableResponses ──► takeResponse … ──► armNotification before sleeping
//
// Source: xen/io/ring.h, FRONT_RING_* and RING_*_RESPONSE*.

internal import CXen
public import Synchronization

/// The frontend's end of a shared ring, owned by one thread.
public struct FrontRing: ~Copyable {
  @usableFromInline let shared: SharedRing
  /// Private producer: requests written so far (ring.h: req_prod_pvt).
  @usableFromInline var producer: UInt32
  /// What the backend was last shown of `producer`.
  @usableFromInline var published: UInt32
  /// Responses taken so far (ring.h: rsp_cons).
  @usableFromInline var consumer: UInt32

  /// Initialises the shared pages and takes the frontend's end of them (SHARED_RING_INIT, FRONT_RING_INIT).
  ///
  /// - Parameters:
  ///   - pages: the ring, mapped for as long as this value lives; nobody else uses it yet.
  ///   - pageCount: a power of two.
  ///   - abi: the layout of the requests.
  ///   - start: the first index; only tests want anything but 0.
  public init(
    pages: UnsafeMutableRawPointer, pageCount: Int, abi: ABI = .native, startingAt start: UInt32 = 0
  ) {
    precondition(pageCount > 0 && pageCount.nonzeroBitCount == 1, "a ring has a power of two of pages")
    // SAFETY: the caller's promise about `pages` is the one that SharedRing asks for.
    shared = unsafe SharedRing(base: pages, pageCount: pageCount, abi: abi)
    // SAFETY: as above; nobody else uses the pages yet.
    unsafe pages.initializeMemory(as: UInt8.self, repeating: 0, count: pageCount * 4096)
    producer = start
    published = start
    consumer = start
    shared.requestProducer.storeRelaxed(start)
    shared.responseProducer.storeRelaxed(start)
    shared.requestEvent.storeRelaxed(start &+ 1)
    shared.responseEvent.storeReleasing(start &+ 1)
  }

  /// How many requests the ring holds at once.
  @inlinable public var capacity: UInt32 { shared.capacity }

  /// Requests enqueued and not answered yet, published or not.
  @inlinable public var outstanding: UInt32 { producer &- consumer }

  /// How many more requests fit (RING_FREE_REQUESTS).
  @inlinable public var freeSlots: UInt32 { capacity &- outstanding }

  /// Whether requests were enqueued that the backend has not been shown.
  @inlinable public var hasUnpublished: Bool { producer != published }

  /// Takes the next slot, cleared; the backend does not see it before `publish`.
  ///
  /// The slot is only written, never read again: the backend may change it at any time.
  @inlinable
  public mutating func enqueue() -> RequestSlot {
    precondition(freeSlots > 0, "enqueue on a full ring")
    let bytes = shared.slot(producer)
    // Padding and unused segments would show the backend what was here before (XSA-216, the other way round).
    bytes.clear(shared.layout.stride)
    producer &+= 1
    return RequestSlot(bytes: bytes, layout: shared.layout)
  }

  /// Shows the backend everything enqueued so far (RING_PUSH_REQUESTS_AND_CHECK_NOTIFY).
  ///
  /// - Returns: whether the backend must be notified.
  @inlinable
  public mutating func publish() -> NotifyPeer {
    let old = published
    published = producer
    // Pairs with the .acquiring load in BackRing.availableRequests: the slots are visible before the index.
    shared.requestProducer.storeReleasing(producer)
    return SharedRing.notification(old: old, new: producer, event: shared.requestEvent)
  }

  /// How many responses can be taken now.
  ///
  /// - Throws: `.tooManyResponses` when the backend claims more than were asked for, or went backwards; the ring
  ///   must not be used any more then.
  @inlinable
  public func availableResponses() throws(RingViolation) -> UInt32 {
    // Untrusted: any value. Pairs with the .releasing store in BackRing.publish.
    let claimed = shared.responseProducer.loadAcquiring()
    let count = claimed &- consumer
    guard count <= published &- consumer else {
      throw .tooManyResponses(claimed: count, outstanding: published &- consumer)
    }
    return count
  }

  /// Takes one response out of the ring.
  ///
  /// Only as often as `availableResponses` said.
  ///
  /// - Returns: a private copy, each word read once; its contents are unchecked.
  @inlinable
  public mutating func takeResponse() -> WireResponse {
    let offset = RingLayout.headerSize + Int(consumer & (capacity - 1)) * shared.layout.stride
    // Three words, each 4-aligned in every layout; the trailing padding is of no interest.
    let low = shared.word(offset).loadRelaxed()
    let high = shared.word(offset + 4).loadRelaxed()
    let rest = shared.word(offset + 8).loadRelaxed()
    consumer &+= 1
    return WireResponse(
      id: UInt64(high) << 32 | UInt64(low),
      operation: UInt8(truncatingIfNeeded: rest),
      status: Int16(truncatingIfNeeded: rest >> 16))
  }

  /// Asks to be notified of the next response (RING_FINAL_CHECK_FOR_RESPONSES).
  ///
  /// - Returns: false when a response has come in meanwhile, which may not be notified: take it instead of
  ///   sleeping.
  @inlinable
  public mutating func armNotification() -> Bool {
    // As ring.h does: while there is work nothing is armed, which saves the fence and the peer's cache line.
    guard shared.responseProducer.loadAcquiring() == consumer else { return false }
    shared.responseEvent.storeRelaxed(consumer &+ 1)
    // The event index is stored before the producer is looked at again; pairs with the fence in BackRing.publish.
    atomicMemoryFence(ordering: .sequentiallyConsistent)
    return shared.responseProducer.loadAcquiring() == consumer
  }
}
