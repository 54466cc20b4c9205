// SPDX-License-Identifier: Apache-2.0
//
// Memory from mmap(2) with one owner.

internal import CXen
internal import Glibc
public import SystemPackage

/// The page of the Xen interfaces: 4 KiB, whatever the machine's own page is.
public enum Page {
  /// Bytes in a page.
  public static let size = 4096
  /// Bits that a byte offset is shifted by to get a page number.
  public static let shift = 12
}

/// A stretch of address space that is unmapped when its owner lets go of it.
@safe public struct MappedRegion: ~Copyable, @unchecked Sendable {
  /// The first byte, page-aligned.
  public let baseAddress: UnsafeMutableRawPointer
  /// The length in bytes, a multiple of the page size.
  public let byteCount: Int

  /// Private zeroed memory.
  ///
  /// - Parameter byteCount: rounded up to whole pages; more than zero.
  public init(anonymous byteCount: Int) throws(Errno) {
    try self.init(
      byteCount: byteCount, protection: PROT_READ | PROT_WRITE,
      flags: MAP_PRIVATE | Int32(MAP_ANONYMOUS), descriptor: -1, offset: 0)
  }

  /// Address space with nothing behind it, to be filled in with `MAP_FIXED`; touching it faults.
  ///
  /// - Parameter byteCount: rounded up to whole pages; more than zero.
  public init(reserving byteCount: Int) throws(Errno) {
    try self.init(
      byteCount: byteCount, protection: PROT_NONE,
      flags: MAP_PRIVATE | Int32(MAP_ANONYMOUS) | Int32(MAP_NORESERVE), descriptor: -1, offset: 0)
  }

  /// A shared mapping of a file.
  ///
  /// - Parameters:
  ///   - descriptor: the file; may be closed afterwards.
  ///   - offset: where in the file, in bytes, a multiple of the page size.
  ///   - byteCount: rounded up to whole pages; more than zero.
  ///   - writable: whether the mapping may be written.
  public init(sharing descriptor: Int32, offset: Int = 0, byteCount: Int, writable: Bool = true) throws(Errno)
  {
    try self.init(
      byteCount: byteCount, protection: writable ? PROT_READ | PROT_WRITE : PROT_READ,
      flags: Int32(MAP_SHARED), descriptor: descriptor, offset: offset)
  }

  private init(
    byteCount: Int, protection: Int32, flags: Int32, descriptor: Int32, offset: Int
  ) throws(Errno) {
    precondition(byteCount > 0, "a mapping of no bytes")
    let length = (byteCount + Page.size - 1) & ~(Page.size - 1)
    // SAFETY: without MAP_FIXED nothing that exists is mapped over; the region belongs to this value alone.
    let address = unsafe mmap(nil, length, protection, flags, descriptor, off_t(offset))
    guard let address = unsafe address, unsafe address != MAP_FAILED else { throw Errno.current }
    unsafe self.baseAddress = address
    self.byteCount = length
  }

  deinit {
    // SAFETY: mapped by the initialiser with this length; whoever has pointers into it keeps this value.
    _ = unsafe munmap(baseAddress, byteCount)
  }
}
