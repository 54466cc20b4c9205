// SPDX-License-Identifier: Apache-2.0
//
// One domain's tables and pages as a process sees them. A process maps the tables of a domain once, however many
// handles it has: that saves memory, and ThreadSanitizer can follow what happens there.

internal import CXen
internal import Glibc
internal import Platform
internal import Synchronization
internal import SystemPackage

/// The shared memory of one incarnation of a domain.
final class DomainMemory: Sendable {
  let domain: UInt16
  let serial: UInt32
  /// The file of the tables and the file of the pages.
  let tablesDescriptor: OwnedDescriptor
  let pagesDescriptor: OwnedDescriptor
  private let tables: MappedRegion
  private let window = Guarded<UInt?>(nil)

  /// Creates a domain's memory, empty.
  init(creating domain: UInt16, serial: UInt32, pageLimit: UInt32, frameLimit: UInt32) throws(Errno) {
    self.domain = domain
    self.serial = serial
    tablesDescriptor = try Self.file("xen-tables", DomainLayout.byteCount)
    pagesDescriptor = try Self.file("xen-pages", DomainLayout.pageBytes)
    tables = try MappedRegion(sharing: tablesDescriptor.raw, byteCount: DomainLayout.byteCount)
    let header = header
    header.magic.storeRelaxed(DomainLayout.magic)
    header.domain.storeRelaxed(UInt32(domain))
    header.serial.storeRelaxed(serial)
    header.pageLimit.storeRelaxed(pageLimit)
    header.frameLimit.storeRelaxed(frameLimit)
    header.grantHint.storeRelaxed(UInt32(DomainLayout.firstGrant))
    header.grantHighWater.storeRelaxed(UInt32(DomainLayout.firstGrant))
    header.alive.storeReleasing(1)
  }

  private init(
    mapping tables: consuming OwnedDescriptor, pages: consuming OwnedDescriptor
  ) throws(Errno) {
    tablesDescriptor = tables
    pagesDescriptor = pages
    self.tables = try MappedRegion(sharing: tablesDescriptor.raw, byteCount: DomainLayout.byteCount)
    // SAFETY: `header` cannot be asked for before all is set; the region is as long as the layout.
    let header = unsafe DomainHeader(record: SharedRecord(self.tables.baseAddress))
    guard header.magic.loadRelaxed() == DomainLayout.magic else { throw .invalidArgument }
    domain = UInt16(truncatingIfNeeded: header.domain.loadRelaxed())
    serial = header.serial.loadRelaxed()
  }

  deinit {
    window.withLock { window in
      // SAFETY: mapped by `pagesWindow` with this length; whoever has pointers into it keeps this object.
      if let window { _ = unsafe munmap(UnsafeMutableRawPointer(bitPattern: window), DomainLayout.pageBytes) }
    }
  }

  /// Memory of a size that none of the processes that get it can change: reading past a shrunken file's end is SIGBUS.
  private static func file(_ name: String, _ byteCount: Int) throws(Errno) -> OwnedDescriptor {
    let flags = UInt32(cxen_MFD_CLOEXEC | cxen_MFD_ALLOW_SEALING)
    // SAFETY: a string that the call reads.
    let file = OwnedDescriptor(try retrying { unsafe cxen_memfd_create(name, flags) })
    try retrying { ftruncate(file.raw, off_t(byteCount)) }
    try retrying { cxen_seal_size(file.raw) }
    return file
  }

  // MARK: what is where

  /// The record with a number in one of the tables; whatever the number, it is one of that table's.
  ///
  /// Whoever uses a record, or a word of it, holds this object meanwhile.
  ///
  /// - Parameters:
  ///   - table: where the table begins.
  ///   - stride: the length of a record in bytes.
  ///   - index: of any value, as it may come out of a table.
  ///   - count: a power of two.
  @inline(__always)
  private func record(_ table: Int, stride: Int, _ index: Int, of count: Int) -> SharedRecord {
    // SAFETY: masked, so it is one of `count` records, which the layout has there; tables and strides are multiples of 8
    // (frames and joins have words of 4 and 8 bytes, and ask for 32-bit words only).
    unsafe SharedRecord(tables.baseAddress + (table &+ (index & (count &- 1)) &* stride))
  }

  var header: DomainHeader { DomainHeader(record: record(0, stride: 0, 0, of: 1)) }
  var isAlive: Bool { header.alive.loadAcquiring() == 1 }

  /// The pages that one join shares; the join's place came with its number.
  func pagesShared(byJoinAt place: Int) -> SharedUInt32 {
    record(DomainLayout.joins, stride: 8, place, of: DomainLayout.joinCount).word32(4)
  }

  func frameOwner(_ frame: Int) -> SharedUInt32 {
    record(DomainLayout.frames, stride: 4, frame, of: DomainLayout.frameCount).word32(0)
  }

  @inline(__always) func handle(_ index: Int) -> HandleEntry {
    HandleEntry(record: record(DomainLayout.handles, stride: 16, index, of: DomainLayout.handleCount))
  }
  @inline(__always) func port(_ port: UInt32) -> PortEntry {
    PortEntry(record: record(DomainLayout.ports, stride: 32, Int(port), of: DomainLayout.portCount))
  }
  @inline(__always) func grant(_ reference: UInt32) -> GrantEntry {
    GrantEntry(record: record(DomainLayout.grants, stride: 32, Int(reference), of: DomainLayout.grantCount))
  }
  @inline(__always) func maptrack(_ handle: UInt32) -> MaptrackEntry {
    MaptrackEntry(
      record: record(DomainLayout.maptrack, stride: 32, Int(handle), of: DomainLayout.maptrackCount))
  }

  /// The domain's pages mapped as a whole, for grant copy; made when first asked for.
  ///
  /// - Returns: `DomainLayout.pageBytes` bytes, mapped for as long as this object lives.
  func pagesWindow() throws(Errno) -> UnsafeMutableRawPointer {
    let address: Result<UInt, Errno> = window.withLock { window in
      if let window { return .success(window) }
      // SAFETY: without MAP_FIXED nothing that exists is mapped over; unmapped in the deinit.
      let address = unsafe mmap(
        nil, DomainLayout.pageBytes, PROT_READ | PROT_WRITE, Int32(MAP_SHARED) | Int32(MAP_NORESERVE),
        pagesDescriptor.raw, 0)
      guard let address = unsafe address, unsafe address != MAP_FAILED else { return .failure(.current) }
      let number = UInt(bitPattern: address)
      window = number
      return .success(number)
    }
    // SAFETY: the address that mmap gave.
    guard let pointer = unsafe UnsafeMutableRawPointer(bitPattern: try address.get()) else { throw .noMemory }
    return unsafe pointer
  }

  // MARK: one mapping for a process

  /// The memory behind two received descriptors; what this process has mapped already is used again.
  static func mapping(
    tables: consuming OwnedDescriptor, pages: consuming OwnedDescriptor
  ) throws(Errno) -> DomainMemory {
    let inode = try inode(tables.raw)
    if let known = known(inode) { return known }
    let memory = try DomainMemory(mapping: tables, pages: pages)
    return memory.registered(inode)
  }

  /// Makes this the one mapping of the process, unless another thread was quicker.
  ///
  /// - Returns: the one to use.
  func registered() throws(Errno) -> DomainMemory { registered(try Self.inode(tablesDescriptor.raw)) }

  private func registered(_ inode: UInt64) -> DomainMemory {
    Self.registry.withLock { registry in
      if let other = registry[inode]?.memory { return other }
      registry = registry.filter { $0.value.memory != nil }
      registry[inode] = Weak(self)
      return self
    }
  }

  private static func known(_ inode: UInt64) -> DomainMemory? {
    registry.withLock { $0[inode]?.memory }
  }

  private static func inode(_ descriptor: Int32) throws(Errno) -> UInt64 {
    var status = stat()
    // SAFETY: the call fills the local variable.
    try retrying { unsafe fstat(descriptor, &status) }
    return UInt64(status.st_ino)
  }

  private struct Weak: Sendable {
    weak let memory: DomainMemory?
    init(_ memory: DomainMemory) { self.memory = memory }
  }
  // All memfds live in one internal filesystem, so an inode number names one for as long as it exists, and it
  // exists for as long as the entry's object.
  private static let registry = Guarded<[UInt64: Weak]>([:])
}
