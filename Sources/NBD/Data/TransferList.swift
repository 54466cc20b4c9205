// SPDX-License-Identifier: Apache-2.0
//
// The memory of one system call: I/O vectors, and the scratch that headers of replies are encoded into. The only place
// where the loop touches the target's memory.

internal import CXen
internal import Glibc
internal import Platform

/// The I/O vectors of a worker, filled anew for every call.
@safe struct TransferList: ~Copyable {
  // SAFETY: allocated and initialised by `init`, freed in the deinit. The first `count` are filled: with memory of the
  // target, which keeps it until the operation is submitted or released (`BlockTarget.vectors`), of a receive
  // buffer, or of `headers`.
  private let vectors: UnsafeMutableBufferPointer<iovec>
  // SAFETY: of `init` as well, `headerBytes` long, initialised.
  private let headers: UnsafeMutableRawPointer
  private let headerBytes: Int
  /// How many vectors are filled, and the bytes that they name.
  private var count = 0
  private(set) var byteCount = 0
  private var headersUsed = 0
  /// Where the scratch is used up to if the last vector ends there: the next header then only makes that one longer.
  private var openHeader = -1

  /// I/O vectors of one system call (IOV_MAX).
  private static let capacity = 1024

  init() {
    headerBytes = Self.capacity * NBDWire.longestReply / 2
    // SAFETY: new memory, all of it initialised.
    unsafe vectors = .allocate(capacity: Self.capacity)
    unsafe vectors.initialize(repeating: iovec())
    unsafe headers = .allocate(byteCount: headerBytes, alignment: 16)
    unsafe headers.initializeMemory(as: UInt8.self, repeating: 0, count: headerBytes)
  }

  deinit {
    // SAFETY: of `init`, and nobody else has them.
    unsafe vectors.deallocate()
    unsafe headers.deallocate()
  }

  /// Begins another call.
  mutating func clear() {
    count = 0
    byteCount = 0
    headersUsed = 0
    openHeader = -1
  }

  /// There is room for the header of a reply and for memory behind it.
  var hasRoomForReply: Bool {
    count &+ 2 < Self.capacity && headersUsed &+ NBDWire.longestReply <= headerBytes
  }

  /// Adds memory of an operation.
  ///
  /// - Parameters:
  ///   - operation: as `target.vectors` wants it.
  ///   - offset: where in the operation's bytes to start.
  ///   - limit: no more bytes than this, whatever the target lists.
  ///   - room: no more vectors than this.
  /// - Returns: how many bytes were added; fewer than `limit` when there are no more vectors.
  @inline(__always)
  mutating func append(
    _ operation: TargetOperation, of target: any BlockTarget, from offset: Int, limit: Int,
    vectors room: Int = Self.capacity
  ) -> Int {
    let end = min(Self.capacity, count &+ room)
    // SAFETY: `count` is never more than there are.
    let free = unsafe UnsafeMutableBufferPointer(rebasing: vectors[count..<max(end, count)])
    let found = unsafe min(target.vectors(of: operation, from: offset, into: free), free.count)
    var total = 0
    var kept = 0
    while kept < found && total < limit {
      // SAFETY: one of those that the target has filled.
      let length = unsafe min(Int(free[kept].iov_len), limit &- total)
      unsafe free[kept].iov_len = length
      total &+= length
      kept &+= 1
    }
    count &+= kept
    byteCount &+= total
    openHeader = -1
    return total
  }

  /// Adds the room of a buffer.
  ///
  /// - Parameters:
  ///   - buffer: stays as it is until the call has been made.
  ///   - limit: no more bytes than this.
  mutating func append(roomOf buffer: borrowing ReceiveBuffer, atMost limit: Int) {
    precondition(count < Self.capacity, "more vectors than a call takes")
    // SAFETY: a vector that is there.
    let room = unsafe buffer.room(atMost: limit)
    unsafe vectors[count] = room
    count &+= 1
    unsafe byteCount &+= Int(room.iov_len)
    openHeader = -1
  }

  /// Adds the header of a reply.
  ///
  /// - Parameters:
  ///   - slot: whose reply it is.
  ///   - style: what the connection agreed on.
  ///   - skipped: bytes of the reply that have left already.
  /// - Returns: how many bytes the header has in all.
  @inline(__always)
  mutating func appendHeader(of slot: Entry<RequestSlot>, style: ReplyStyle, skipping skipped: Int) -> Int {
    precondition(hasRoomForReply, "more replies than a call takes")
    let place = headersUsed
    // SAFETY: so many bytes are left of the scratch, which was initialised.
    let scratch = unsafe UnsafeMutableRawBufferPointer(start: headers + place, count: NBDWire.longestReply)
    var bytes = unsafe scratch.mutableBytes
    let length = slot.pointee.encodeHeader(into: &bytes, style: style)
    headersUsed &+= length
    guard skipped < length else { return length }
    if openHeader == place {
      // SAFETY: the last of those that are filled, and the header lies right behind it. Put back as a whole: see ADR 11 on
      // fields that are changed in place.
      let last = unsafe vectors[count &- 1]
      unsafe vectors[count &- 1] = iovec(iov_base: last.iov_base, iov_len: last.iov_len &+ length)
      byteCount &+= length
    } else {
      // SAFETY: the part of the header just encoded that has not left; there is room for the vector.
      unsafe vectors[count] = iovec(iov_base: headers + place + skipped, iov_len: length &- skipped)
      count &+= 1
      byteCount &+= length &- skipped
    }
    openHeader = headersUsed
    return length
  }

  /// Sends what the vectors name.
  ///
  /// - Returns: what sendmsg(2) did.
  mutating func send(to descriptor: Int32) -> Int {
    // SAFETY: the kernel reads the filled vectors' memory, which is there; see `vectors`.
    var message = unsafe msghdr()
    unsafe message.msg_iov = vectors.baseAddress
    unsafe message.msg_iovlen = count
    return unsafe sendmsg(descriptor, &message, Int32(MSG_NOSIGNAL))
  }

  /// Receives into what the vectors name.
  ///
  /// - Returns: what recvmsg(2) did.
  mutating func receive(from descriptor: Int32) -> Int {
    // SAFETY: the kernel writes the filled vectors' memory, which is there; see `vectors`.
    var message = unsafe msghdr()
    unsafe message.msg_iov = vectors.baseAddress
    unsafe message.msg_iovlen = count
    return unsafe recvmsg(descriptor, &message, 0)
  }

  /// Copies from the front of a buffer into an operation's memory.
  ///
  /// - Parameters:
  ///   - count: bytes; they have to be there.
  ///   - buffer: where they come from; they stay there.
  ///   - operation: a write of `target` that was begun and not submitted.
  ///   - offset: where in the operation's bytes to put them.
  mutating func copy(
    _ count: Int, from buffer: borrowing ReceiveBuffer, to operation: TargetOperation,
    of target: any BlockTarget, at offset: Int
  ) {
    var done = 0
    while done < count {
      clear()
      let bytes = append(operation, of: target, from: offset &+ done, limit: count &- done)
      // A target that has no memory for bytes it took on is broken; the rest of the write is then undefined.
      guard bytes > 0 else { return }
      for index in 0..<self.count {
        // SAFETY: the target's memory, as long as the vector says.
        let vector = unsafe vectors[index]
        guard let base = unsafe vector.iov_base else { return }
        unsafe buffer.copy(done, Int(vector.iov_len), to: base)
        unsafe done &+= Int(vector.iov_len)
      }
    }
  }
}
