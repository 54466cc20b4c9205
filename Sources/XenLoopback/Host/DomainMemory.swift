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
    header.magic.pointee.store(DomainLayout.magic, ordering: .relaxed)
    header.domain.pointee.store(UInt32(domain), ordering: .relaxed)
    header.serial.pointee.store(serial, ordering: .relaxed)
    header.pageLimit.pointee.store(pageLimit, ordering: .relaxed)
    header.frameLimit.pointee.store(frameLimit, ordering: .relaxed)
    header.grantHint.pointee.store(UInt32(DomainLayout.firstGrant), ordering: .relaxed)
    header.grantHighWater.pointee.store(UInt32(DomainLayout.firstGrant), ordering: .relaxed)
    header.alive.pointee.store(1, ordering: .releasing)
  }

  private init(
    mapping tables: consuming OwnedDescriptor, pages: consuming OwnedDescriptor
  ) throws(Errno) {
    tablesDescriptor = tables
    pagesDescriptor = pages
    self.tables = try MappedRegion(sharing: tablesDescriptor.raw, byteCount: DomainLayout.byteCount)
    let header = DomainHeader(record: SharedRecord(base: self.tables.baseAddress))
    guard header.magic.pointee.load(ordering: .relaxed) == DomainLayout.magic else { throw .invalidArgument }
    domain = UInt16(truncatingIfNeeded: header.domain.pointee.load(ordering: .relaxed))
    serial = header.serial.pointee.load(ordering: .relaxed)
  }

  deinit {
    window.withLock { window in
      if let window { _ = munmap(UnsafeMutableRawPointer(bitPattern: window), DomainLayout.pageBytes) }
    }
  }

  private static func file(_ name: String, _ byteCount: Int) throws(Errno) -> OwnedDescriptor {
    let file = OwnedDescriptor(try retrying { cxen_memfd_create(name, UInt32(cxen_MFD_CLOEXEC)) })
    try retrying { ftruncate(file.raw, off_t(byteCount)) }
    return file
  }

  // MARK: what is where

  private func record(_ offset: Int) -> SharedRecord { SharedRecord(base: tables.baseAddress + offset) }

  var header: DomainHeader { DomainHeader(record: record(0)) }
  var isAlive: Bool { header.alive.pointee.load(ordering: .acquiring) == 1 }

  /// The pages that one join shares; the join's place came with its number.
  func pagesShared(byJoinAt place: Int) -> SharedUInt32 { record(DomainLayout.joins).word32(place * 8 + 4) }

  func frameOwner(_ frame: Int) -> SharedUInt32 { record(DomainLayout.frames).word32(frame * 4) }

  @inline(__always) func handle(_ index: Int) -> HandleEntry {
    HandleEntry(record: record(DomainLayout.handles + index * 16))
  }
  @inline(__always) func port(_ port: UInt32) -> PortEntry {
    PortEntry(record: record(DomainLayout.ports + Int(port) * 32))
  }
  @inline(__always) func grant(_ reference: UInt32) -> GrantEntry {
    GrantEntry(record: record(DomainLayout.grants + Int(reference) * 32))
  }
  @inline(__always) func maptrack(_ handle: UInt32) -> MaptrackEntry {
    MaptrackEntry(record: record(DomainLayout.maptrack + Int(handle) * 32))
  }

  /// The domain's pages mapped as a whole, for grant copy; made when first asked for.
  func pagesWindow() throws(Errno) -> UnsafeMutableRawPointer {
    let address: Result<UInt, Errno> = window.withLock { window in
      if let window { return .success(window) }
      let address = mmap(
        nil, DomainLayout.pageBytes, PROT_READ | PROT_WRITE, Int32(MAP_SHARED) | Int32(MAP_NORESERVE),
        pagesDescriptor.raw, 0)
      guard let address, address != MAP_FAILED else { return .failure(.current) }
      window = UInt(bitPattern: address)
      return .success(UInt(bitPattern: address))
    }
    guard let pointer = UnsafeMutableRawPointer(bitPattern: try address.get()) else { throw .noMemory }
    return pointer
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
    try retrying { fstat(descriptor, &status) }
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
