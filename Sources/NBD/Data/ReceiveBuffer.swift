// SPDX-License-Identifier: Apache-2.0
//
// What a client sent and nobody has looked at yet. All offsets that are given are checked against what has come, so
// that nothing that a client says leads out of the buffer, nor to bytes of an earlier message.
//
//   0 ── used ── start ── unparsed ── end ── room ── byteCount

internal import CXen
internal import Glibc
internal import Platform
internal import SystemPackage

/// The receive buffer of one connection.
@safe struct ReceiveBuffer: ~Copyable {
  private var region: MappedRegion?
  // SAFETY: `byteCount` bytes of `region`, or nil and 0. Kept apart so that the path of a request does not look into an
  // optional of the region.
  private let base: UnsafeMutableRawPointer?
  private let byteCount: Int
  private var start = 0
  private var end = 0

  /// No memory at all, for a connection that is not there.
  init() {
    region = nil
    unsafe base = nil  // SAFETY: with a `byteCount` of 0.
    byteCount = 0
  }

  /// An empty buffer.
  ///
  /// - Parameter byteCount: of it; becomes real memory as it is first used.
  init(byteCount: Int) throws(Errno) {
    let region = try MappedRegion(anonymous: byteCount)
    // SAFETY: the region goes with this buffer.
    unsafe base = region.baseAddress
    self.byteCount = byteCount
    self.region = consume region
  }

  /// Bytes that came and were not used yet.
  var count: Int {
    @inline(__always) get { end &- start }
  }

  /// Takes bytes off the front: they have been looked at.
  ///
  /// - Parameter count: 0 to `count`.
  @inline(__always)
  mutating func consume(_ count: Int) {
    check(0, count)
    start &+= count
  }

  /// Takes all bytes off.
  mutating func consumeAll() { start = end }

  /// Moves what is left to the front when the room behind it runs short.
  @inline(__always)
  mutating func makeRoom() {
    let count = count
    if count == 0 {
      start = 0
      end = 0
      // SAFETY: the condition only looks whether there is memory.
    } else if start > 0 && (count < 4096 || start > byteCount / 4), let base = unsafe base {
      // SAFETY: `start` to `end` lie in the buffer, and so do as many bytes from its beginning.
      unsafe _ = memmove(base, base + start, count)
      start = 0
      end = count
    }
  }

  /// The room behind what has come, as a vector to receive into; it lasts until the next call of a method.
  ///
  /// - Parameter limit: no more than this.
  @inline(__always)
  func room(atMost limit: Int) -> iovec {
    // SAFETY: from `end`, which is in the buffer or at its end, and no longer than the rest; a null address with no length.
    unsafe iovec(
      iov_base: base.map { unsafe $0 + end }, iov_len: max(min(byteCount &- end, limit), 0))
  }

  /// Receives behind what has come.
  ///
  /// - Parameter limit: no more than this.
  /// - Returns: what recv(2) did, and how many bytes there was room for.
  @inline(__always)
  mutating func receive(from descriptor: Int32, atMost limit: Int) -> (received: Int, wanted: Int) {
    let room = unsafe room(atMost: limit)
    // SAFETY: the kernel fills memory of the buffer, no longer than it is.
    let received = unsafe recv(descriptor, room.iov_base, room.iov_len, 0)
    if received > 0 { fill(received) }
    return unsafe (received, Int(room.iov_len))
  }

  /// Takes note of bytes that came into the room.
  @inline(__always)
  mutating func fill(_ count: Int) {
    precondition(count >= 0 && count <= byteCount &- end, "more bytes than there was room for")
    end &+= count
  }

  /// Lends bytes that came.
  ///
  /// - Parameters:
  ///   - offset: from the first unused byte.
  ///   - count: how many; they have to be there.
  @inline(__always)
  func withBytes<Result>(_ offset: Int = 0, count: Int, _ body: (RawSpan) -> Result) -> Result {
    check(offset, count)
    // SAFETY: checked, and the buffer is borrowed until `body` returns.
    return unsafe body(
      RawSpan(
        _unsafeBytes: UnsafeRawBufferPointer(start: base.map { unsafe $0 + start + offset }, count: count)))
  }

  /// Copies bytes from the front.
  ///
  /// - Parameters:
  ///   - offset: from the first unused byte.
  ///   - count: how many; they have to be there.
  ///   - destination: room for them, elsewhere.
  @inline(__always)
  func copy(_ offset: Int, _ count: Int, to destination: UnsafeMutableRawPointer) {
    check(offset, count)
    // SAFETY: looks whether there is memory; used below.
    guard let base = unsafe base else { return }
    // SAFETY: the source is checked; the destination is the caller's promise.
    unsafe _ = memcpy(destination, base + start + offset, count)
  }

  @inline(__always)
  private func check(_ offset: Int, _ count: Int) {
    precondition(
      UInt(bitPattern: offset) <= UInt(bitPattern: self.count)
        && UInt(bitPattern: count) <= UInt(bitPattern: self.count &- offset),
      "bytes that have not come")
  }
}
