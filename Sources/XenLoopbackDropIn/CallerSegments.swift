// SPDX-License-Identifier: Apache-2.0
//
// The segments of xengnttab_grant_copy, judged as gntdev judges them (drivers/xen/gntdev.c: gntdev_grant_copy_seg): one
// after the other, and what is wrong with the first that is wrong is the errno of the whole call.

internal import CXen
internal import CXenDropIn
internal import Platform
internal import SystemPackage
internal import Xen

/// Segments of a copy, as the caller wrote them.
///
/// gntdev notices all memory that is not there. Here it is noticed where no process can have memory, NULL above all, and
/// where a number of segments leads out of the array's first page; in between the caller's word is taken.
@safe struct CallerSegments {
  // SAFETY: `count` segments by the caller's word, of which those before `readable`, an address, can be read.
  private let start: UnsafeMutablePointer<xengnttab_grant_copy_segment_t>
  private var readable: UInt
  let count: Int

  /// - Returns: nil for an array that is nowhere.
  @safe init?(_ start: UnsafeMutablePointer<xengnttab_grant_copy_segment_t>?, count: UInt32) {
    // SAFETY: kept, not used.
    guard let start = unsafe start, !isNowhere(UInt(bitPattern: start)) else { return nil }
    unsafe self.start = start
    readable = (UInt(bitPattern: start) | UInt(Page.size - 1)) &+ 1
    self.count = Int(count)
  }

  /// A segment in the seam's form.
  ///
  /// - Parameter index: below `count`; from 0 upwards, as the array is looked at where it is read.
  /// - Returns: nil when there is nothing to copy.
  /// - Throws: EINVAL or EFAULT, which are the call's.
  mutating func segment(_ index: Int) throws(Errno) -> GrantCopySegment? {
    checkBound(index)
    // SAFETY: within what the caller says is there, and looked at before it is read; read once, as other threads of the
    // caller's may write there meanwhile.
    let next = unsafe start + (index + 1)
    try look(to: UInt(bitPattern: next))
    let raw = unsafe start[index]
    let length = unsafe raw.len
    let source = unsafe CallerPlace(raw.source, isGranted: raw.flags & UInt16(GNTCOPY_source_gref) != 0)
    let destination = unsafe CallerPlace(raw.dest, isGranted: raw.flags & UInt16(GNTCOPY_dest_gref) != 0)
    guard source.isGranted || destination.isGranted, !source.isLeft(by: length),
      !destination.isLeft(by: length)
    else { throw .invalidArgument }
    guard length > 0 else { return nil }
    return GrantCopySegment(
      source: try source.place(), destination: try destination.place(), byteCount: length)
  }

  /// Tells the caller what became of a segment that was asked for.
  func setStatus(_ status: GrantCopySegment.Status, _ index: Int) {
    checkBound(index)
    // SAFETY: `segment` has read it.
    unsafe start[index].status = status.rawValue
  }

  private func checkBound(_ index: Int) {
    precondition(index >= 0 && index < count, "no such segment in the caller's array")
  }

  /// Makes sure that the array can be read up to an address.
  private mutating func look(to end: UInt) throws(Errno) {
    while end > readable {
      guard xenloopback_is_readable(readable) != 0 else { throw .badAddress }
      readable &+= UInt(Page.size)
    }
  }
}

/// One end of a segment, as the caller wrote it.
@safe private struct CallerPlace {
  // SAFETY: nothing is followed here. That `byteCount` bytes are at the address is what the caller promises.
  private let address: UnsafeMutableRawPointer?
  private let foreign: (reference: UInt32, domain: UInt16, offset: UInt16)
  let isGranted: Bool

  init(_ end: xengnttab_copy_ptr, isGranted: Bool) {
    // SAFETY: a union of a pointer and three numbers, one of which counts; either is valid whatever its bits are.
    unsafe address = end.virt
    foreign = unsafe (end.foreign.ref, end.foreign.domid, end.foreign.offset)
    self.isGranted = isGranted
  }

  /// Whether a number of bytes goes past the end of the granted page.
  func isLeft(by byteCount: UInt16) -> Bool {
    isGranted && Int(foreign.offset) + Int(byteCount) > Page.size
  }

  func place() throws(Errno) -> GrantCopySegment.Place {
    if isGranted {
      return .granted(GrantRef(foreign.reference), DomainID(foreign.domain), offset: foreign.offset)
    }
    // SAFETY: see `address`.
    guard let address = unsafe address, !isNowhere(UInt(bitPattern: address)) else { throw .badAddress }
    return unsafe .local(address)
  }
}

/// Whether no process has memory at an address: the first page, which nobody may map, and the kernel's half.
private func isNowhere(_ address: UInt) -> Bool { Int(bitPattern: address) < Page.size }
