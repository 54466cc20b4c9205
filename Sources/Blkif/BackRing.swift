// SPDX-License-Identifier: Apache-2.0
//
// The backend's end of a ring: it takes requests and pushes responses, and can do nothing else.
//
// Source: xen/io/ring.h, BACK_RING_* and RING_*_REQUEST*.

internal import CXen
public import Synchronization

/// The backend's end of a shared ring, owned by one thread.
public struct BackRing: ~Copyable {
  @usableFromInline let shared: SharedRing
  /// Private producer: responses written so far (ring.h: rsp_prod_pvt).
  @usableFromInline var producer: UInt32
  /// What the frontend was last shown of `producer`.
  @usableFromInline var published: UInt32
  /// Requests taken so far (ring.h: req_cons).
  @usableFromInline var consumer: UInt32

  /// Takes the backend's end of a ring that a frontend has initialised (BACK_RING_ATTACH).
  ///
  /// It goes on behind the last response, so that requests left by an earlier backend are served.
  ///
  /// - Parameters:
  ///   - pages: the mapped ring, mapped for as long as this value lives.
  ///   - pageCount: a power of two.
  ///   - abi: what the frontend's `protocol` node says.
  /// - Throws: `.tooManyRequests` when the indices cannot be.
  public init(pages: UnsafeMutableRawPointer, pageCount: Int, abi: ABI) throws(RingViolation) {
    precondition(pageCount > 0 && pageCount.nonzeroBitCount == 1, "a ring has a power of two of pages")
    // SAFETY: the caller's promise about `pages` is the one that SharedRing asks for.
    shared = unsafe SharedRing(base: pages, pageCount: pageCount, abi: abi)
    let start = shared.responseProducer.loadAcquiring()
    producer = start
    published = start
    consumer = start
    _ = try availableRequests()
  }

  /// How many requests the ring holds at once.
  @inlinable public var capacity: UInt32 { shared.capacity }

  /// Requests taken and not answered yet.
  @inlinable public var outstanding: UInt32 { consumer &- producer }

  /// Whether responses were pushed that the frontend has not been shown.
  @inlinable public var hasUnpublished: Bool { producer != published }

  /// How many requests can be taken now.
  ///
  /// - Throws: `.tooManyRequests` when the frontend claims more than fit (RING_REQUEST_PROD_OVERFLOW) or went back
  ///   behind a request that was taken; the ring must not be used any more then.
  @inlinable
  public func availableRequests() throws(RingViolation) -> UInt32 {
    // Untrusted: any value. Pairs with the .releasing store in FrontRing.publish.
    let claimed = shared.requestProducer.loadAcquiring()
    let claimedOutstanding = claimed &- producer
    guard claimedOutstanding <= capacity, claimedOutstanding >= outstanding else {
      throw .tooManyRequests(claimed: claimedOutstanding, capacity: capacity)
    }
    return claimed &- consumer
  }

  /// Takes one request out of the ring (RING_COPY_REQUEST).
  ///
  /// Only as often as `availableRequests` said.
  ///
  /// - Parameter buffer: receives a private copy, at least 112 bytes.
  /// - Returns: a view of that copy; its contents are unchecked.
  @inlinable
  public mutating func takeRequest(into buffer: UnsafeMutableRawPointer) -> WireRequest {
    // SAFETY: the buffer has at least 112 bytes, the largest stride, and is the caller's alone.
    unsafe shared.slot(consumer).copy(to: buffer, shared.layout.stride)
    consumer &+= 1
    return unsafe WireRequest(copy: UnsafeRawPointer(buffer), layout: shared.layout)
  }

  /// Writes one response; the frontend does not see it before `publish`.
  @inlinable
  public mutating func push(id: UInt64, operation: UInt8, status: Int16) {
    precondition(outstanding > 0, "a response without a request")
    let bytes = shared.slot(producer)
    // The response's own padding would otherwise show what was here before (XSA-216).
    bytes.put(UInt32(0), at: 8)
    if shared.layout.shift == 0 { bytes.put(UInt32(0), at: 12) }
    bytes.put(UInt32(truncatingIfNeeded: id), at: 0)
    bytes.put(UInt32(truncatingIfNeeded: id >> 32), at: 4)
    bytes.put(operation, at: 8)
    bytes.put(status, at: 10)
    producer &+= 1
  }

  /// Shows the frontend everything pushed so far (RING_PUSH_RESPONSES_AND_CHECK_NOTIFY).
  ///
  /// - Returns: whether the frontend must be notified.
  @inlinable
  public mutating func publish() -> NotifyPeer {
    let old = published
    published = producer
    // Pairs with the .acquiring load in FrontRing.availableResponses.
    shared.responseProducer.storeReleasing(producer)
    return SharedRing.notification(old: old, new: producer, event: shared.responseEvent)
  }

  /// Asks to be notified of the next request (RING_FINAL_CHECK_FOR_REQUESTS).
  ///
  /// - Returns: false when a request has come in meanwhile: take it instead of sleeping.
  @inlinable
  public mutating func armNotification() -> Bool {
    // As ring.h does: while there is work nothing is armed, which saves the fence and the peer's cache line.
    guard shared.requestProducer.loadAcquiring() == consumer else { return false }
    shared.requestEvent.storeRelaxed(consumer &+ 1)
    // The event index is stored before the producer is looked at again; pairs with the fence in FrontRing.publish.
    atomicMemoryFence(ordering: .sequentiallyConsistent)
    return shared.requestProducer.loadAcquiring() == consumer
  }
}
