// SPDX-License-Identifier: Apache-2.0
//
// How a request's segments become memory that the storage can use: pages that are kept mapped, pages mapped for
// this request, or copies made by the hypervisor.

internal import Blkif
internal import Glibc
internal import Platform
internal import Xen

extension QueueEngine {
  /// Makes a slot's segments reachable and lists them as vectors.
  ///
  /// - Returns: false when a reference cannot be mapped or copied; what was mapped is let go of with the slot.
  @inline(__always)
  mutating func map(_ slot: UInt32, _ operation: StorageRequest.Operation) -> Bool {
    if parameters.configuration.dataPath == .grantCopy { return stage(slot, operation) }
    let segments = pending.segments(slot)
    let count = pending[slot].segmentCount
    var found = 0
    if parameters.persistent {
      let uses = pending.uses(slot)
      while found < count, let entry = persistent.acquire(segments[found].reference.rawValue, second: second)
      {
        uses[found] = entry
        addresses[found] = persistent.page(entry)
        found &+= 1
      }
      pending[slot].useCount = found
      statistics.persistentHits &+= UInt64(truncatingIfNeeded: found)
    }
    if found < count, !mapMissing(slot, from: found, count, writable: operation == .read) {
      cannotReach()
      return false
    }
    buildVectors(slot, count)
    return true
  }

  /// Lists the pages as vectors, those that touch each other as one.
  @inline(__always)
  private func buildVectors(_ slot: UInt32, _ count: Int) {
    let segments = pending.segments(slot)
    // SAFETY: see `PendingRequests.vectors`.
    let vectors = unsafe pending.vectors(slot)
    var last = -1
    var end: UnsafeMutableRawPointer?
    for index in 0..<count {
      guard let page = addresses[index] else { continue }
      let segment = segments[index]
      let length = segment.sectorCount &* BlkIf.sectorSize
      // SAFETY: the segment was checked: its sectors are the page's, and the page is kept mapped until the request's end. A
      // vector goes on only where the next page touches this one.
      let start = unsafe page.address(of: segment)
      if unsafe start == end {
        unsafe vectors[last].iov_len &+= length
      } else {
        last &+= 1
        unsafe vectors[last] = iovec(iov_base: start, iov_len: length)
      }
      unsafe end = start + length
    }
    // SAFETY: as many as were written; a slot's list lives as long as the slot.
    unsafe pending[slot].work.vectors = vectors.buffer(count: last &+ 1)
  }

  /// Maps what is not mapped yet, beginning with segment `first`.
  private mutating func mapMissing(_ slot: UInt32, from first: Int, _ count: Int, writable: Bool) -> Bool {
    let segments = pending.segments(slot)
    var missing = 0
    for index in first..<count {
      addresses[index] = nil
      let reference = segments[index].reference
      guard parameters.persistent else {
        references[missing] = reference
        missing += 1
        continue
      }
      let uses = pending.uses(slot)
      if let entry = persistent.acquire(reference.rawValue, second: second) {
        uses[pending[slot].useCount] = entry
        pending[slot].useCount += 1
        addresses[index] = persistent.page(entry)
        statistics.persistentHits &+= 1
      } else if persistent.hasRoom(for: reference.rawValue) {
        // For writing, whatever this request is: the page will be used for others (blkif.h: feature-persistent).
        guard let entry = keep(reference) else { return false }
        uses[pending[slot].useCount] = entry
        pending[slot].useCount += 1
        addresses[index] = persistent.page(entry)
      } else {
        references[missing] = reference
        missing += 1
      }
    }
    if missing == 0 { return true }
    return mapTransient(slot, from: first, count, missing: missing, writable: writable)
  }

  /// Maps one page that stays mapped.
  private mutating func keep(_ reference: GrantRef) -> UInt32? {
    let grants = grants
    let domain = parameters.frontend
    statistics.mapCalls &+= 1
    let single = CollectionOfOne(reference)
    // SAFETY: the page stays mapped until `persistent` gives it back.
    let page = unsafe (try? grants.map(single.span, of: domain, writable: true)).map { unsafe MappedPage($0) }
    guard let page else { return nil }
    statistics.persistentMisses &+= 1
    return persistent.insert(reference.rawValue, page, second: second)
  }

  /// Maps the references in the scratch list for this request and gives the pages to the segments without one.
  private mutating func mapTransient(
    _ slot: UInt32, from first: Int, _ count: Int, missing: Int, writable: Bool
  ) -> Bool {
    let transients = pending.transients(slot)
    let step = parameters.configuration.batchMapping ? missing : 1
    var index = first
    var done = 0
    while done < missing {
      statistics.mapCalls &+= 1
      guard let mapping = mapReferences(done..<done + step, writable: writable) else { return false }
      transients[pending[slot].transientCount] = mapping
      pending[slot].transientCount += 1
      statistics.transientMaps &+= UInt64(step)
      for page in 0..<step {
        while addresses[index] != nil { index += 1 }
        addresses[index] = mapping.page(page)
      }
      done += step
    }
    return true
  }

  /// Maps references of the scratch list with one call.
  private func mapReferences(_ range: Range<Int>, writable: Bool) -> TransientMapping? {
    references.withElements(range) { list in
      // SAFETY: the pages stay mapped until the mapping is let go of.
      unsafe (try? grants.map(list, of: parameters.frontend, writable: writable))
        .map { unsafe TransientMapping($0, count: range.count) }
    }
  }

  // MARK: Pages that cannot be reached

  /// A page that a request names could be neither mapped nor copied: stops if that goes for the ring as well.
  ///
  /// The frontend's domain was restored then, or has taken everything back, and we have not read of it yet. Whoever still
  /// reads in the ring is about to leave it; an answer would tell him of an error of the disk that there was not.
  mutating func cannotReach() {
    guard !hasLostRing, !ringIsGranted() else { return }
    hasLostRing = true
    isStopped = true
  }

  private func ringIsGranted() -> Bool {
    var word: UInt32 = 0
    // A copy needs no maptrack handle; why a mapping fails, Linux's gntdev does not say (it is EINVAL whatever Xen has said).
    // SAFETY: as many bytes as the variable has, which outlives the call.
    let status = unsafe withUnsafeMutableBytes(of: &word) { bytes -> GrantCopySegment.Status in
      guard let local = bytes.baseAddress else { return .okay }
      var probe = unsafe CollectionOfOne(
        GrantCopySegment(
          source: .granted(ringReference, parameters.frontend, offset: 0), destination: .local(local),
          byteCount: UInt16(bytes.count)))
      var span = probe.mutableSpan
      // A call that cannot be made says nothing of the grant.
      guard (try? grants.copy(&span)) != nil else { return .okay }
      return probe[0].status
    }
    return switch status {
    case .badDomain, .badReference, .permissionDenied: false
    case .okay, .generalError, .badArgument: true
    }
  }

  // MARK: Indirect pages

  /// Copies the segments out of an indirect request's pages, once, into the slot.
  mutating func loadIndirect(_ request: WireRequest, _ slot: UInt32, _ count: Int) -> Bool {
    let pages = BlkIf.indirectPages(forSegments: count)
    let segments = pending.segments(slot)
    for page in 0..<pages {
      let begin = page * BlkIf.segmentsPerIndirectPage
      let many = min(count - begin, BlkIf.segmentsPerIndirectPage)
      // SAFETY: a stretch of the slot's list, with room for so many in their wire form, which has the same size.
      let room = unsafe segments.buffer(from: begin, count: many)
      guard
        let start = UnsafeMutableRawPointer(room.baseAddress),
        unsafe readGranted(request.indirectPage(page), into: start, byteCount: many * Segment.wireSize)
      else {
        cannotReach()
        return false
      }
      // The wire form now lies where the segments belong.
      for index in 0..<many {
        segments[begin + index] = unsafe Segment(loading: start + index * Segment.wireSize)
      }
    }
    return true
  }

  private mutating func readGranted(
    _ reference: GrantRef, into destination: UnsafeMutableRawPointer, byteCount: Int
  ) -> Bool {
    // SAFETY of the copies here: the caller's destination has room for `byteCount` bytes, a page at most.
    if parameters.configuration.dataPath == .grantCopy {
      copies[0] = unsafe GrantCopySegment(
        source: .granted(reference, parameters.frontend, offset: 0), destination: .local(destination),
        byteCount: UInt16(byteCount))
      return copy(1)
    }
    if parameters.persistent {
      if let entry = persistent.acquire(reference.rawValue, second: second) {
        unsafe persistent.page(entry)?.copy(to: destination, byteCount: byteCount)
        persistent.release(entry)
        statistics.persistentHits &+= 1
        return true
      }
      if persistent.hasRoom(for: reference.rawValue) {
        guard let entry = keep(reference) else { return false }
        // SAFETY: as above.
        unsafe persistent.page(entry)?.copy(to: destination, byteCount: byteCount)
        persistent.release(entry)
        return true
      }
    }
    references[0] = reference
    statistics.mapCalls &+= 2
    statistics.transientMaps &+= 1
    guard let mapping = mapReferences(0..<1, writable: false) else { return false }
    // SAFETY: as above.
    unsafe mapping.page(0).copy(to: destination, byteCount: byteCount)
    mapping.unmap(grants)
    return true
  }

  // MARK: Grant copy

  /// Takes a write's data into the slot's own memory, or makes room there for a read's.
  private mutating func stage(_ slot: UInt32, _ operation: StorageRequest.Operation) -> Bool {
    // SAFETY: the slot's own memory, with a page for each segment, and the vector says how much of it is used; the checks
    // of the segments have bounded that.
    guard let staging = unsafe pending.staging(slot) else { return false }
    // SAFETY: see `PendingRequests.vectors`.
    let vectors = unsafe pending.vectors(slot)
    // SAFETY: as above.
    unsafe vectors[0] = iovec(iov_base: staging, iov_len: Int(pending[slot].work.byteCount))
    unsafe pending[slot].work.vectors = vectors.buffer(count: 1)
    if operation == .read {
      pending[slot].isStaged = true
      return true
    }
    return unsafe copySegments(slot, staging, toGranted: false)
  }

  /// Copies a read's data to the frontend.
  mutating func unstage(_ slot: UInt32) {
    // SAFETY: see `stage`.
    guard pending[slot].outcome == .done, let staging = unsafe pending.staging(slot) else { return }
    if unsafe !copySegments(slot, staging, toGranted: true) { pending[slot].outcome = .failed(EFAULT) }
  }

  private mutating func copySegments(
    _ slot: UInt32, _ staging: UnsafeMutableRawPointer, toGranted: Bool
  ) -> Bool {
    let segments = pending.segments(slot)
    let count = pending[slot].segmentCount
    // SAFETY: see `stage`; each segment takes a page of it at most.
    var local = unsafe staging
    for index in 0..<count {
      let segment = segments[index]
      let bytes = segment.sectorCount * BlkIf.sectorSize
      let granted = GrantCopySegment.Place.granted(
        segment.reference, parameters.frontend, offset: UInt16(Int(segment.firstSector) * BlkIf.sectorSize))
      copies[index] = unsafe GrantCopySegment(
        source: toGranted ? .local(local) : granted, destination: toGranted ? granted : .local(local),
        byteCount: UInt16(bytes))
      unsafe local += bytes
    }
    return copy(count)
  }

  private mutating func copy(_ count: Int) -> Bool {
    statistics.grantCopies &+= UInt64(count)
    let grants = grants
    do throws(XenError) {
      try copies.withMutableElements(0..<count) { list throws(XenError) in try grants.copy(&list) }
    } catch {
      return false
    }
    for index in 0..<count where copies[index].status != .okay {
      cannotReach()
      return false
    }
    return true
  }
}
