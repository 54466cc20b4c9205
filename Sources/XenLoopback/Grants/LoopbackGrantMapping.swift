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
    _ references: UnsafeBufferPointer<GrantRef>, of domain: DomainID, writable: Bool
  ) throws(XenError) -> UnsafeMutableRawPointer {
    try map(references, of: domain, writable: writable, notifyPort: 0, clearOffset: .max)
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
    let result: Result<UnsafeMutableRawPointer, XenError> = withUnsafePointer(to: reference) { pointer in
      Result { () throws(XenError) in
        try map(
          UnsafeBufferPointer(start: pointer, count: 1), of: domain, writable: writable,
          notifyPort: numbers.port,
          clearOffset: numbers.clearOffset)
      }
    }
    return try result.get()
  }

  private func map(
    _ references: UnsafeBufferPointer<GrantRef>, of domain: DomainID, writable: Bool, notifyPort: UInt32,
    clearOffset: UInt32
  ) throws(XenError) -> UnsafeMutableRawPointer {
    guard let base = references.baseAddress, !references.isEmpty else {
      throw XenError(.invalid, "no grant references of domain \(domain) to map")
    }
    let granter: DomainMemory
    do throws(Errno) {
      granter = try connection.memory(of: domain.rawValue)
    } catch {
      throw XenError(
        errno: error, "cannot map grants of domain \(domain) in the loopback \(connection.control.directory)")
    }
    // SAFETY: a GrantRef is one UInt32.
    let raw = UnsafeBufferPointer(
      start: UnsafeRawPointer(base).assumingMemoryBound(to: UInt32.self), count: references.count)
    let first = try track(
      raw, of: granter, writable: writable, notifyPort: notifyPort, clearOffset: clearOffset)
    let address: UnsafeMutableRawPointer
    do throws(Errno) {
      address = try mapPages(of: granter, raw, writable: writable)
    } catch {
      untrack(first, granter)
      throw XenError(errno: error, "cannot map \(raw.count) pages of domain \(domain)")
    }
    let record = GrantMappingRecord(
      address: UInt(bitPattern: address), pageCount: raw.count, firstHandle: first,
      granter: Unmanaged.passRetained(granter))
    table.withLock { $0.insert(record) }
    return address
  }

  func unmap(_ address: UnsafeMutableRawPointer, count: Int) throws(XenError) {
    let key = UInt(bitPattern: address)
    guard let record = table.withLock({ $0.remove(key, pageCount: count) }) else {
      throw XenError(
        .invalid, "cannot unmap \(count) pages at \(address): no map call returned this address and count")
    }
    release(record)
  }

  // MARK: tracking

  /// Pins every grant and writes down who mapped it.
  ///
  /// - Returns: the handle of the first page; the others are chained to it.
  private func track(
    _ references: UnsafeBufferPointer<UInt32>, of granter: DomainMemory, writable: Bool, notifyPort: UInt32,
    clearOffset: UInt32
  ) throws(XenError) -> UInt32 {
    var first = Maptrack.none
    // From the last to the first, so that the chain comes out in order.
    for index in references.indices.reversed() {
      let reference = references[index]
      guard let handle = connection.maptrack.take(vcpu) else {
        untrack(first, granter)
        throw XenError(
          .limitReached,
          "cannot map \(references.count) pages of domain \(granter.domain): domain "
            + "\(connection.domain) has no maptrack handle left; unmap something", errno: .noSpace)
      }
      do throws(GrantRefusal) {
        try granter.pin(reference, by: connection.domain, writable: writable)
      } catch {
        connection.maptrack.put(handle)
        untrack(first, granter)
        throw Self.refused(error, reference, granter.domain, connection.domain)
      }
      let entry = connection.memory.maptrack(handle)
      entry.reference.pointee.store(reference, ordering: .relaxed)
      entry.serial.pointee.store(granter.serial, ordering: .relaxed)
      entry.notifyPort.pointee.store(notifyPort, ordering: .relaxed)
      entry.clearOffset.pointee.store(clearOffset, ordering: .relaxed)
      entry.next.pointee.store(first, ordering: .relaxed)
      // From here on the host would undo the mapping. Dying between the pin and this leaks the page, no more.
      entry.state.pointee.store(
        MaptrackEntry.active | (writable ? 0 : MaptrackEntry.readOnly) | UInt32(granter.domain),
        ordering: .releasing)
      first = handle
    }
    return first
  }

  private func untrack(_ first: UInt32, _ granter: DomainMemory) {
    var handle = first
    while handle != Maptrack.none {
      let entry = connection.memory.maptrack(handle)
      let next = entry.next.pointee.load(ordering: .relaxed)
      let reference = entry.reference.pointee.load(ordering: .relaxed)
      let port = entry.notifyPort.pointee.load(ordering: .relaxed)
      // The host does the same when it ends a join; whoever finds the state set undoes the mapping.
      let state = entry.state.pointee.exchange(0, ordering: .acquiringAndReleasing)
      if state & MaptrackEntry.active != 0 {
        granter.unpin(reference, writable: state & MaptrackEntry.readOnly == 0, join: connection.join)
        connection.send(port)
      }
      connection.maptrack.put(handle)
      handle = next
    }
  }

  private func release(_ record: GrantMappingRecord) {
    guard let granter = record.granter, let address = UnsafeMutableRawPointer(bitPattern: record.address)
    else { return }
    let offset = connection.memory.maptrack(record.firstHandle).clearOffset.pointee.load(ordering: .relaxed)
    if offset < UInt32(Page.size) { (address + Int(offset)).storeBytes(of: 0, as: UInt8.self) }
    _ = munmap(address, record.pageCount << Page.shift)
    untrack(record.firstHandle, granter.takeUnretainedValue())
    granter.release()
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

  func copy(_ segments: UnsafeMutableBufferPointer<GrantCopySegment>) throws(XenError) {
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
    if let refused = source.open(segment.source, byteCount, connection, writable: false) { return refused }
    if let refused = destination.open(segment.destination, byteCount, connection, writable: true) {
      return refused
    }
    guard let from = source.address, let to = destination.address else { return .generalError }
    memmove(to, from, byteCount)
    return .okay
  }
}

/// One end of a copy: pinned for as long as the copy takes.
private struct CopyEnd {
  var address: UnsafeMutableRawPointer?
  private var pinned: (memory: DomainMemory, reference: UInt32, writable: Bool)?

  /// - Returns: why it may not be used; nil when it may.
  mutating func open(
    _ place: GrantCopySegment.Place, _ byteCount: Int, _ connection: LoopbackConnection, writable: Bool
  ) -> GrantCopySegment.Status? {
    switch place {
    case .local(let pointer):
      address = pointer
      return nil
    case .granted(let reference, let domain, let offset):
      guard Int(offset) + byteCount <= Page.size else { return .badArgument }
      guard let memory = try? connection.memory(of: domain.rawValue) else { return .badDomain }
      guard let window = try? memory.pagesWindow() else { return .generalError }
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
      address = window + Int(reference.rawValue) << Page.shift + Int(offset)
      return nil
    }
  }

  func unpin(_ join: UInt32) {
    if let pinned { pinned.memory.unpin(pinned.reference, writable: pinned.writable, join: join) }
  }
}
