// SPDX-License-Identifier: Apache-2.0
//
// GNTTABOP_map_grant_ref and unmap of the loopback, in the mapper's process: check and pin each grant, take a
// maptrack handle for it, and really map the page. Unmapping really unmaps, with the TLB shootdown that costs.

internal import CXen
internal import Glibc
internal import Platform
internal import Synchronization
internal import SystemPackage
internal import Xen

/// Maps and copies pages of other loopback domains.
final class LoopbackGrantMapping: GrantMapping {
  private let connection: LoopbackConnection
  // The vCPU that this handle's calls run on.
  private let vcpu: Int
  private let table = Guarded(MappingTable())

  init(_ connection: LoopbackConnection) {
    self.connection = connection
    vcpu = connection.maptrack.assignVCPU()
  }

  deinit {
    // xengnttab_close unmaps what is left.
    while let record = table.withLock({ $0.removeAny() }) { release(record) }
    connection.maptrack.releaseVCPU(vcpu)
  }

  func map(
    _ references: Span<GrantRef>, of domain: DomainID, writable: Bool
  ) throws(XenError) -> UnsafeMutableRawPointer {
    // SAFETY: handed on to whoever unmaps it.
    try unsafe map(references, of: domain, writable: writable, UnmapNumbers())
  }

  func map(
    _ reference: GrantRef, of domain: DomainID, writable: Bool, notification: UnmapNotification
  ) throws(XenError) -> UnsafeMutableRawPointer {
    if notification.clearByteAt != nil && !writable {
      // gntdev refuses too: the page could not be written at its end.
      throw XenError(
        .invalid, "cannot clear a byte of grant reference \(reference) of domain \(domain), mapped read-only")
    }
    let numbers = try connection.numbers(of: notification)
    let one = CollectionOfOne(reference)
    // SAFETY: handed on to whoever unmaps it.
    return try unsafe map(one.span, of: domain, writable: writable, numbers)
  }

  private func map(
    _ references: Span<GrantRef>, of domain: DomainID, writable: Bool, _ numbers: UnmapNumbers
  ) throws(XenError) -> UnsafeMutableRawPointer {
    guard !references.isEmpty else {
      throw XenError(.invalid, "no grant references of domain \(domain) to map")
    }
    let granter: DomainMemory
    do throws(Errno) {
      granter = try connection.memory(of: domain.rawValue)
    } catch {
      throw XenError(
        errno: error, "cannot map grants of domain \(domain) in the loopback \(connection.control.directory)")
    }
    let first = try track(references, of: granter, writable: writable, numbers)
    let address: UnsafeMutableRawPointer
    do throws(Errno) {
      // SAFETY: mapped until `unmap` or the deinit finds its record.
      unsafe address = try mapPages(of: granter, references, writable: writable)
    } catch {
      untrack(first, references.count, granter)
      throw XenError(errno: error, "cannot map \(references.count) pages of domain \(domain)")
    }
    let record = GrantMappingRecord(
      address: UInt(bitPattern: address), pageCount: references.count, firstHandle: first,
      clearOffset: numbers.clearOffset, granter: granter)
    table.withLock { $0.insert(record) }
    // SAFETY: to who asked for it.
    return unsafe address
  }

  func unmap(_ address: UnsafeMutableRawPointer, count: Int) throws(XenError) {
    let key = UInt(bitPattern: address)
    guard let record = table.withLock({ $0.remove(key, pageCount: count) }) else {
      throw XenError(
        .invalid,
        "cannot unmap \(count) pages at 0x\(String(key, radix: 16)): no map call returned this address and count"
      )
    }
    release(record)
  }

  // MARK: tracking

  /// Pins every grant and writes down who mapped it.
  ///
  /// - Returns: the handle of the first page; the others are chained to it.
  private func track(
    _ references: Span<GrantRef>, of granter: DomainMemory, writable: Bool, _ numbers: UnmapNumbers
  ) throws(XenError) -> UInt32 {
    var first = Maptrack.none
    // From the last to the first, so that the chain comes out in order.
    var index = references.count
    while index > 0 {
      index -= 1
      let reference = references[index].rawValue
      guard let handle = connection.maptrack.take(vcpu) else {
        untrack(first, references.count - 1 - index, granter)
        throw XenError(
          .limitReached,
          "cannot map \(references.count) pages of domain \(granter.domain): domain "
            + "\(connection.domain) has no maptrack handle left; unmap something", errno: .noSpace)
      }
      do throws(GrantRefusal) {
        try granter.pin(reference, by: connection.domain, writable: writable)
      } catch {
        connection.maptrack.put(handle)
        untrack(first, references.count - 1 - index, granter)
        throw Self.refused(error, reference, granter.domain, connection.domain)
      }
      let entry = connection.memory.maptrack(handle)
      entry.reference.storeRelaxed(reference)
      entry.serial.storeRelaxed(granter.serial)
      entry.notifyPort.storeRelaxed(numbers.port)
      entry.notifyHandle.storeRelaxed(numbers.handle)
      entry.clearOffset.storeRelaxed(numbers.clearOffset)
      entry.next.storeRelaxed(first)
      // From here on the host would undo the mapping. Dying between the pin and this leaks the page, no more.
      entry.state.storeReleasing(
        MaptrackEntry.active | (writable ? 0 : MaptrackEntry.readOnly) | UInt32(granter.domain))
      first = handle
    }
    return first
  }

  /// Undoes `track`.
  ///
  /// - Parameter count: how many pages were tracked: the chain is in a table that others can write, and may by now go
  ///   round in circles.
  private func untrack(_ first: UInt32, _ count: Int, _ granter: DomainMemory) {
    var handle = first
    for _ in 0..<count where handle != Maptrack.none {
      let entry = connection.memory.maptrack(handle)
      let next = entry.next.loadRelaxed()
      let reference = entry.reference.loadRelaxed()
      let notification = UnmapNumbers(
        port: entry.notifyPort.loadRelaxed(), handle: entry.notifyHandle.loadRelaxed())
      // The host does the same when it ends a join; whoever finds the state set undoes the mapping.
      let state = entry.state.exchange(0)
      if state & MaptrackEntry.active != 0 {
        granter.unpin(reference, writable: state & MaptrackEntry.readOnly == 0, join: connection.join)
        connection.send(notification)
      }
      connection.maptrack.put(handle)
      handle = next
    }
  }

  private func release(_ record: GrantMappingRecord) {
    // SAFETY: the record of a mapping is taken out of the table once, with its address and length. One that has a byte to
    // clear is writable (`map`), and the byte within its page (`LoopbackConnection.numbers`).
    guard let granter = record.granter,
      let address = unsafe UnsafeMutableRawPointer(bitPattern: record.address)
    else { return }
    let offset = record.clearOffset
    if offset < UInt32(Page.size) { unsafe (address + Int(offset)).storeBytes(of: 0, as: UInt8.self) }
    _ = unsafe munmap(address, record.pageCount << Page.shift)
    untrack(record.firstHandle, record.pageCount, granter)
  }

  private static func refused(
    _ refusal: GrantRefusal, _ reference: UInt32, _ granter: UInt16, _ mapper: UInt16
  ) -> XenError {
    let what = "cannot map grant reference \(reference) of domain \(granter)"
    return switch refusal {
    case .notGranted: XenError(.notFound, "\(what): it is not granted")
    case .otherDomain: XenError(.denied, "\(what): it is granted to another domain than \(mapper)")
    case .readOnly: XenError(.denied, "\(what) writable: it is granted read-only")
    case .tooManyMappings: XenError(.limitReached, "\(what): it is mapped 65535 times already")
    }
  }

  // MARK: copying

  func copy(_ segments: inout MutableSpan<GrantCopySegment>) throws(XenError) {
    for index in segments.indices { segments[index].status = copy(segments[index]) }
  }

  private func copy(_ segment: GrantCopySegment) -> GrantCopySegment.Status {
    let byteCount = Int(segment.byteCount)
    var source = CopyEnd()
    var destination = CopyEnd()
    defer {
      source.unpin(connection.join)
      destination.unpin(connection.join)
    }
    // SAFETY: a granted end is `byteCount` bytes of a page that is pinned until this returns; a local one the caller's
    // promise. What another domain does to the bytes meanwhile changes what is copied and nothing else.
    if let refused = source.open(segment.source, byteCount, connection, writable: false) {
      return refused
    }
    if let refused = destination.open(segment.destination, byteCount, connection, writable: true) {
      return refused
    }
    guard let from = unsafe source.address, let to = unsafe destination.address else { return .generalError }
    unsafe memmove(to, from, byteCount)
    return .okay
  }
}

/// One end of a copy: pinned for as long as the copy takes.
@safe private struct CopyEnd {
  // SAFETY: only `copy` above uses it, between `open` and `unpin`.
  private(set) var address: UnsafeMutableRawPointer?
  private var pinned: (memory: DomainMemory, reference: UInt32, writable: Bool)?

  /// - Returns: why it may not be used; nil when it may.
  mutating func open(
    _ place: GrantCopySegment.Place, _ byteCount: Int, _ connection: LoopbackConnection, writable: Bool
  ) -> GrantCopySegment.Status? {
    switch place {
    // SAFETY: kept, not used.
    case .local(let pointer):
      unsafe address = pointer
      return nil
    case .granted(let reference, let domain, let offset):
      guard Int(offset) + byteCount <= Page.size else { return .badArgument }
      guard let memory = try? connection.memory(of: domain.rawValue) else { return .badDomain }
      // SAFETY: the window lives as long as the memory, which `pinned` holds.
      guard let window = try? unsafe memory.pagesWindow() else { return .generalError }
      do throws(GrantRefusal) {
        try memory.pin(reference.rawValue, by: connection.domain, writable: writable)
      } catch {
        switch error {
        case .notGranted, .otherDomain: return .badReference
        case .readOnly: return .permissionDenied
        case .tooManyMappings: return .generalError
        }
      }
      pinned = (memory, reference.rawValue, writable)
      // SAFETY: `pin` only lets references of the table pass, and the window has a page for each; the offset was checked.
      unsafe address = window + Int(reference.rawValue) << Page.shift + Int(offset)
      return nil
    }
  }

  func unpin(_ join: UInt32) {
    if let pinned { pinned.memory.unpin(pinned.reference, writable: pinned.writable, join: join) }
  }
}
