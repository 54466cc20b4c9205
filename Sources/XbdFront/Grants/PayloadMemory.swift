// SPDX-License-Identifier: Apache-2.0
//
// The two kinds of memory that a payload passes through: a granted page, which the backend sees and may change at any
// moment, and private memory. All copying between them is here, and every place that is given is checked against
// the memory's bound. These are handles, made and given back by GrantPool.swift and BufferCache.swift.

internal import Blkif
internal import CXen
internal import Glibc
internal import Platform
internal import Xen

/// A page that the backend may read and write.
///
/// Whoever has it in a `PageList` uses it until the list goes back to its pool.
@safe struct GrantedPage {
  // SAFETY: `Page.size` bytes, mapped for as long as the pool is there that has the chunk, and so are its lists. The
  // backend may change them meanwhile: they are only ever copied, and nothing is decided by them.
  let address: UnsafeMutableRawPointer

  /// One of the pages that were shared by one call.
  init(_ chunk: SharedPages, _ index: Int) {
    precondition(index >= 0 && index < chunk.pageCount, "a page that was not shared")
    // SAFETY: the chunk's pages lie next to each other, and this is one of them.
    unsafe address = chunk.baseAddress + index * Page.size
  }

  /// Clears the page from `offset`, 0 to 4,096, to its end.
  func clear(from offset: Int = 0) {
    precondition(UInt(bitPattern: offset) <= UInt(Page.size), "a place outside of the page")
    // SAFETY: from within the page to its end.
    unsafe _ = memset(address + offset, 0, Page.size - offset)
  }

  /// Overwrites part of the page.
  ///
  /// - Parameters:
  ///   - count: bytes; `offset + count` is 4,096 at most.
  ///   - buffer: where they come from, beginning at `place`; holds as many behind it.
  func put(_ count: Int, to offset: Int = 0, from buffer: PrivateBuffer, at place: Int) {
    check(count, at: offset)
    buffer.check(count, at: place)
    // SAFETY: both stretches were checked; private memory is never part of a page.
    unsafe _ = memcpy(address + offset, buffer.address + place, count)
  }

  /// Copies part of the page to private memory: the same the other way round.
  func take(_ count: Int, from offset: Int = 0, to buffer: PrivateBuffer, at place: Int) {
    check(count, at: offset)
    buffer.check(count, at: place)
    // SAFETY: as above.
    unsafe _ = memcpy(buffer.address + place, address + offset, count)
  }

  /// Writes an entry of a page that lists segments.
  ///
  /// - Parameter index: 0 to 511.
  @inline(__always)
  func put(_ segment: Segment, at index: Int) {
    precondition(
      UInt(bitPattern: index) < UInt(BlkIf.segmentsPerIndirectPage), "no such segment in the page")
    // SAFETY: so many entries fit into a page.
    unsafe segment.store(to: address + index * Segment.wireSize)
  }

  @inline(__always)
  fileprivate func check(_ count: Int, at offset: Int) {
    precondition(
      UInt(bitPattern: offset) <= UInt(Page.size) && UInt(bitPattern: count) <= UInt(Page.size - offset),
      "a place outside of the page")
  }
}

/// Memory of this process alone.
///
/// Whoever has the operation that it belongs to gives it back, once.
@safe struct PrivateBuffer: @unchecked Sendable {
  // SAFETY: `byteCount` bytes from `init` to `deallocate`; passed on with the operation, used by one thread at a time.
  let address: UnsafeMutableRawPointer
  /// All of it, in bytes.
  let byteCount: Int

  private init(_ address: UnsafeMutableRawPointer, _ byteCount: Int) {
    // SAFETY: kept, not used.
    unsafe self.address = address
    self.byteCount = byteCount
  }

  /// Page-aligned memory from the system; its contents are left over from anywhere in this process.
  ///
  /// - Parameter byteCount: a page or more.
  /// - Returns: nil when there is none.
  init?(allocating byteCount: Int) {
    precondition(byteCount >= Page.size, "a buffer of less than a page")
    var memory: UnsafeMutableRawPointer?
    // SAFETY: what is set is a local; it is set to memory of that size.
    guard unsafe posix_memalign(&memory, Page.size, byteCount) == 0, let memory = unsafe memory else {
      return nil
    }
    unsafe self.init(memory, byteCount)
  }

  /// Gives it back to the system.
  func deallocate() {
    // SAFETY: from posix_memalign, and given back once by its owner.
    unsafe free(address)
  }

  /// Clears its first `count` bytes.
  func clear(_ count: Int) {
    check(count, at: 0)
    // SAFETY: checked.
    unsafe _ = memset(address, 0, count)
  }

  @inline(__always)
  fileprivate func check(_ count: Int, at place: Int) {
    precondition(
      UInt(bitPattern: place) <= UInt(byteCount) && UInt(bitPattern: count) <= UInt(byteCount - place),
      "a place outside of the buffer")
  }

  /// The next of the buffers that are kept for reuse, all of this size; its address stands in the first bytes.
  ///
  /// Only of a buffer that is kept: its contents are nobody's then.
  var nextKept: PrivateBuffer? {
    get {
      // SAFETY: set when the buffer was put before that one; a page at least, so there is room for an address.
      guard let next = unsafe address.load(as: UnsafeMutableRawPointer?.self) else { return nil }
      return unsafe PrivateBuffer(next, byteCount)
    }
    nonmutating set {
      precondition(newValue == nil || newValue?.byteCount == byteCount, "buffers of different sizes")
      // SAFETY: see above.
      unsafe address.storeBytes(of: newValue?.address, as: UnsafeMutableRawPointer?.self)
    }
  }
}

/// The I/O vectors that a caller wants to have filled.
@safe struct VectorList {
  // SAFETY: the caller's, who lends them for the length of the call that this is a local of.
  private let vectors: UnsafeMutableBufferPointer<iovec>
  /// How many are filled.
  private(set) var count = 0

  init(_ vectors: UnsafeMutableBufferPointer<iovec>) {
    // SAFETY: kept, not used.
    unsafe self.vectors = vectors
  }

  /// No further one can be filled.
  var isFull: Bool {
    // SAFETY: looks at no element.
    unsafe count >= vectors.count
  }

  /// Names part of a granted page; neighbours in memory become one vector.
  ///
  /// Only while the list is not full.
  mutating func append(_ page: GrantedPage, _ length: Int, at offset: Int) {
    page.check(length, at: offset)
    // SAFETY: within the page.
    unsafe append(page.address + offset, length)
  }

  /// Names part of a private buffer.
  ///
  /// Only while the list is not full.
  mutating func append(_ buffer: PrivateBuffer, _ length: Int, at place: Int) {
    buffer.check(length, at: place)
    // SAFETY: within the buffer.
    unsafe append(buffer.address + place, length)
  }

  private mutating func append(_ address: UnsafeMutableRawPointer, _ length: Int) {
    precondition(!isFull, "more vectors than there is room for")
    // SAFETY: one that was filled before, and one that there is room for.
    if count > 0, let base = unsafe vectors[count - 1].iov_base,
      unsafe base + vectors[count - 1].iov_len == address
    {
      unsafe vectors[count - 1].iov_len += length
    } else {
      unsafe vectors[count] = iovec(iov_base: address, iov_len: length)
      count += 1
    }
  }
}
