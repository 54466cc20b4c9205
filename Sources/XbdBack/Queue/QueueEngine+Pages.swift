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
    let pointer = pending.slots + Int(slot)
    let segments = pending.segments(Int(slot))
    let count = pointer.pointee.segmentCount
    var found = 0
    if parameters.persistent {
      let uses = pending.uses(Int(slot))
      while found < count, let entry = persistent.acquire(segments[found].reference.rawValue, second: second)
      {
        uses[found] = entry
        addresses[found] = persistent.entries[Int(entry)].address
        found &+= 1
      }
      pointer.pointee.useCount = found
      statistics.persistentHits &+= UInt64(truncatingIfNeeded: found)
    }
    if found < count, !mapMissing(slot, from: found, count, writable: operation == .read) { return false }
    buildVectors(slot, count)
    return true
  }

  /// Lists the pages as vectors, those that touch each other as one.
  @inline(__always)
  private func buildVectors(_ slot: UInt32, _ count: Int) {
    let pointer = pending.slots + Int(slot)
    let segments = pending.segments(Int(slot))
    let vectors = pending.vectors(Int(slot))
    var last = -1
    var end: UnsafeMutableRawPointer?
    for index in 0..<count {
      guard let page = addresses[index] else { continue }
      let start = page + Int(segments[index].firstSector) &* BlkIf.sectorSize
      let length = segments[index].sectorCount &* BlkIf.sectorSize
      if start == end {
        vectors[last].iov_len &+= length
      } else {
        last &+= 1
        vectors[last] = iovec(iov_base: start, iov_len: length)
      }
      end = start + length
    }
    pointer.pointee.work.vectors = UnsafeMutableBufferPointer(start: vectors, count: last &+ 1)
  }

  /// Maps what is not mapped yet, beginning with segment `first`.
  private mutating func mapMissing(_ slot: UInt32, from first: Int, _ count: Int, writable: Bool) -> Bool {
    let pointer = pending.slots + Int(slot)
    let segments = pending.segments(Int(slot))
    var missing = 0
    for index in first..<count {
      addresses[index] = nil
      let reference = segments[index].reference
      guard parameters.persistent else {
        references[missing] = reference
        missing += 1
        continue
      }
      let uses = pending.uses(Int(slot))
      if let entry = persistent.acquire(reference.rawValue, second: second) {
        uses[pointer.pointee.useCount] = entry
        pointer.pointee.useCount += 1
        addresses[index] = persistent.entries[Int(entry)].address
        statistics.persistentHits &+= 1
      } else if persistent.hasRoom(for: reference.rawValue) {
        // For writing, whatever this request is: the page will be used for others (blkif.h: feature-persistent).
        guard let entry = keep(reference) else { return false }
        uses[pointer.pointee.useCount] = entry
        pointer.pointee.useCount += 1
        addresses[index] = persistent.entries[Int(entry)].address
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
    var reference = reference
    let grants = grants
    let domain = parameters.frontend
    statistics.mapCalls &+= 1
    let address = withUnsafePointer(to: &reference) { single in
      try? grants.map(UnsafeBufferPointer(start: single, count: 1), of: domain, writable: true)
    }
    guard let address else { return nil }
    statistics.persistentMisses &+= 1
    return persistent.insert(reference.rawValue, address, second: second)
  }

  /// Maps the references in the scratch list for this request and gives the pages to the segments without one.
  private mutating func mapTransient(
    _ slot: UInt32, from first: Int, _ count: Int, missing: Int, writable: Bool
  ) -> Bool {
    let pointer = pending.slots + Int(slot)
    let transients = pending.transients(Int(slot))
    let step = parameters.configuration.batchMapping ? missing : 1
    var index = first
    var done = 0
    while done < missing {
      let batch = UnsafeBufferPointer(start: references + done, count: step)
      statistics.mapCalls &+= 1
      guard let base = try? grants.map(batch, of: parameters.frontend, writable: writable) else {
        return false
      }
      transients[pointer.pointee.transientCount] = TransientMapping(address: base, count: step)
      pointer.pointee.transientCount += 1
      statistics.transientMaps &+= UInt64(step)
      for page in 0..<step {
        while addresses[index] != nil { index += 1 }
        addresses[index] = base + page * Page.size
      }
      done += step
    }
    return true
  }

  // MARK: Indirect pages

  /// Copies the segments out of an indirect request's pages, once, into the slot.
  mutating func loadIndirect(_ request: WireRequest, _ slot: UInt32, _ count: Int) -> Bool {
    let pages = BlkIf.indirectPages(forSegments: count)
    let segments = pending.segments(Int(slot))
    for page in 0..<pages {
      let begin = page * BlkIf.segmentsPerIndirectPage
      let bytes = min(count - begin, BlkIf.segmentsPerIndirectPage) * Segment.wireSize
      guard readGranted(request.indirectPage(page), into: segments + begin, byteCount: bytes) else {
        return false
      }
    }
    // The wire form now lies where the segments belong, and both have the same size.
    let wire = UnsafeRawPointer(segments)
    for index in 0..<count { segments[index] = Segment(loading: wire + index * Segment.wireSize) }
    return true
  }

  private mutating func readGranted(
    _ reference: GrantRef, into destination: UnsafeMutableRawPointer, byteCount: Int
  ) -> Bool {
    if parameters.configuration.dataPath == .grantCopy {
      copies[0] = GrantCopySegment(
        source: .granted(reference, parameters.frontend, offset: 0), destination: .local(destination),
        byteCount: UInt16(byteCount))
      return copy(1)
    }
    if parameters.persistent {
      if let entry = persistent.acquire(reference.rawValue, second: second) {
        destination.copyMemory(from: persistent.entries[Int(entry)].address, byteCount: byteCount)
        persistent.release(entry)
        statistics.persistentHits &+= 1
        return true
      }
      if persistent.hasRoom(for: reference.rawValue) {
        guard let entry = keep(reference) else { return false }
        destination.copyMemory(from: persistent.entries[Int(entry)].address, byteCount: byteCount)
        persistent.release(entry)
        return true
      }
    }
    references[0] = reference
    statistics.mapCalls &+= 2
    statistics.transientMaps &+= 1
    let list = UnsafeBufferPointer(start: references, count: 1)
    guard let page = try? grants.map(list, of: parameters.frontend, writable: false) else { return false }
    destination.copyMemory(from: page, byteCount: byteCount)
    try? grants.unmap(page, count: 1)
    return true
  }

  // MARK: Grant copy

  /// Takes a write's data into the slot's own memory, or makes room there for a read's.
  private mutating func stage(_ slot: UInt32, _ operation: StorageRequest.Operation) -> Bool {
    guard let staging = pending.staging(Int(slot)) else { return false }
    let pointer = pending.slots + Int(slot)
    let vectors = pending.vectors(Int(slot))
    vectors[0] = iovec(iov_base: staging, iov_len: Int(pointer.pointee.work.byteCount))
    pointer.pointee.work.vectors = UnsafeMutableBufferPointer(start: vectors, count: 1)
    if operation == .read {
      pointer.pointee.isStaged = true
      return true
    }
    return copySegments(slot, staging, toGranted: false)
  }

  /// Copies a read's data to the frontend.
  mutating func unstage(_ slot: UInt32) {
    let pointer = pending.slots + Int(slot)
    guard pointer.pointee.outcome == .done, let staging = pending.staging(Int(slot)) else { return }
    if !copySegments(slot, staging, toGranted: true) { pointer.pointee.outcome = .failed(EFAULT) }
  }

  private mutating func copySegments(
    _ slot: UInt32, _ staging: UnsafeMutableRawPointer, toGranted: Bool
  ) -> Bool {
    let segments = pending.segments(Int(slot))
    let count = pending.slots[Int(slot)].segmentCount
    var local = staging
    for index in 0..<count {
      let segment = segments[index]
      let bytes = segment.sectorCount * BlkIf.sectorSize
      let granted = GrantCopySegment.Place.granted(
        segment.reference, parameters.frontend, offset: UInt16(Int(segment.firstSector) * BlkIf.sectorSize))
      copies[index] = GrantCopySegment(
        source: toGranted ? .local(local) : granted, destination: toGranted ? granted : .local(local),
        byteCount: UInt16(bytes))
      local += bytes
    }
    return copy(count)
  }

  private mutating func copy(_ count: Int) -> Bool {
    statistics.grantCopies &+= UInt64(count)
    let list = UnsafeMutableBufferPointer(rebasing: copies[0..<count])
    do throws(XenError) { try grants.copy(list) } catch { return false }
    for segment in list where segment.status != .okay { return false }
    return true
  }
}
