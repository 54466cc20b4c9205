// SPDX-License-Identifier: Apache-2.0
//
// From operations to ring requests: an operation's range is cut into requests of at most as many segments as were
// negotiated; each segment is a granted page or part of one. Everything that can fail is acquired first, then the
// slot is filled.

internal import Blkif
internal import Platform
internal import Xen

extension QueueCore {
  /// Puts as much as possible of what is pending into the ring: in order, but the large ones in turns.
  ///
  /// Where the backend shares the thread, an operation with more to issue ends the turn.
  mutating func issuePending() {
    guard !isDead, !isHolding else { return }
    while !pending.isEmpty {
      let slot = pending.first
      guard issue(slot) else {
        // Nothing in flight brings pages back: something that waits has to do without its own.
        if inFlight.count == 0, freeWaitingPages() { continue }
        return
      }
      pending.removeFirst(&operations)
      if operations[slot].yields {
        operations[slot].yields = false
        pending.append(slot, &operations)
        if sharesThread {
          hasPaused = true
          return
        }
        continue
      }
      operations[slot].state = .active
      if operations[slot].outstanding == 0 { advance(slot) }
    }
  }

  /// Moves the payload of one operation that is not in flight to private memory.
  ///
  /// - Returns: whether that has freed pages.
  private mutating func freeWaitingPages() -> Bool {
    for slot in 0..<Int32(Self.operationCapacity) {
      let pages = operations[slot].pages
      guard !pages.isEmpty, operations[slot].state == .queued || operations[slot].state == .parked else {
        continue
      }
      saveFromPages(slot)
      operationPages -= Int(pages.count)
      pool.put(pages)
      return true
    }
    return false
  }

  /// Puts the present step of an operation into the ring.
  ///
  /// - Returns: false when ring or pages ran out before the end of it.
  private mutating func issue(_ slot: Int32) -> Bool {
    // Some part failed already: the rest would be for nothing.
    if operations[slot].status != .okay { return true }
    switch operations[slot].step {
    case .edges: return issueEdges(slot)
    case .flush: return issueFlush(slot)
    case .main:
      switch operations[slot].command {
      case .flush: return issueFlush(slot)
      case .discard: return issueDiscard(slot)
      case .read, .write, .writeZeroes: return issueData(slot)
      }
    }
  }

  /// Cuts a read or write into requests.
  private mutating func issueData(_ slot: Int32) -> Bool {
    while operations[slot].issued < operations[slot].alignedCount {
      if operations[slot].issued - operations[slot].turnStart >= turnBytes,
        sharesThread || operations[slot].next >= 0
      {
        operations[slot].turnStart = operations[slot].issued
        operations[slot].yields = true
        return true
      }
      var left = operations[slot].alignedCount - operations[slot].issued
      if sharesThread { left = min(left, Self.shortTurn) }
      let issued =
        operations[slot].pages.isEmpty
        ? issueCopied(slot, offset: operations[slot].issued, atMost: left, role: .data)
        : issueGranted(slot, atMost: left)
      guard issued > 0 else { return false }
      operations[slot].issued += issued
    }
    return true
  }

  /// One request with pages that the operation itself holds.
  ///
  /// - Returns: bytes put into the ring; 0 when there was no room.
  private mutating func issueGranted(_ slot: Int32, atMost left: UInt64) -> UInt64 {
    guard hasRingSlot() else { return 0 }
    var segments = min(parameters.maxSegments, pageCount(left))
    var indirect = PageList()
    if segments > BlkIf.maxDirectSegments {
      if let list = pool.take(BlkIf.indirectPages(forSegments: segments)) {
        indirect = list
      } else {
        segments = BlkIf.maxDirectSegments
      }
    }
    let count = min(left, UInt64(segments) << Page.shift)
    operations[slot].cursor = push(
      slot, offset: operations[slot].issued, count: count, role: .data,
      firstPage: operations[slot].cursor, own: PageList(), indirect: indirect)
    return count
  }

  /// One request with pages taken for it, filled from private memory (or with zeroes) if it is a write.
  ///
  /// - Returns: bytes put into the ring; 0 when there was no room.
  private mutating func issueCopied(
    _ slot: Int32, offset: UInt64, atMost left: UInt64, role: InFlightRecord.Role
  ) -> UInt64 {
    guard hasRingSlot() else { return 0 }
    guard let (pages, indirect) = takePages(min(parameters.maxSegments, pageCount(left))) else { return 0 }
    copyPages += Int(pages.count + indirect.count)
    let count = min(left, UInt64(pages.count) << Page.shift)
    if role == .data, operations[slot].command != .read { copyIn(slot, offset, Int(count), pages) }
    _ = push(
      slot, offset: offset, count: count, role: role, firstPage: pages.first, own: pages, indirect: indirect)
    return count
  }

  /// Takes pages for one request and, if they are many, for the list of them.
  ///
  /// - Parameter wanted: segments; fewer are given when the pool is small and nothing in flight will return any.
  private mutating func takePages(_ wanted: Int) -> (PageList, PageList)? {
    // As negotiated, of a pool that may have become smaller: several requests at a time find room in it.
    var segments = min(wanted, max(BlkIf.maxDirectSegments, pool.bound / 3))
    if callersWantPages {
      let share = max(pool.bound / 4, 1)
      guard copyPages == 0 || copyPages < share else {
        counters.waitsForPages &+= 1
        return nil
      }
      segments = min(segments, max((share - copyPages) / 2, 1))
    }
    while segments > 0 {
      let lists = segments > BlkIf.maxDirectSegments ? BlkIf.indirectPages(forSegments: segments) : 0
      if let indirect = lists == 0 ? PageList() : pool.take(lists) {
        if let pages = pool.take(segments) { return (pages, indirect) }
        pool.put(indirect)
      }
      if inFlight.count > 0 { break }
      segments /= 2
    }
    counters.waitsForPages &+= 1
    return nil
  }

  /// Writes one read or write request.
  ///
  /// Nothing can fail any more.
  ///
  /// - Returns: the page behind the last one used.
  private mutating func push(
    _ slot: Int32, offset: UInt64, count: UInt64, role: InFlightRecord.Role, firstPage: Int32, own: PageList,
    indirect: PageList
  ) -> Int32 {
    let isRead = operations[slot].command == .read || role == .edge
    let wire: BlockOperation = isRead ? .read : .write
    let segments = pageCount(count)
    let sector = (operations[slot].alignedOffset + offset) >> parameters.sectorShift
    let id = record(
      slot, wire, role, offset: offset, count: count, own: own, indirect: indirect)
    let request = ring.enqueue()
    var page = firstPage
    var left = Int(count)
    if indirect.isEmpty {
      request.setDirect(
        wire, id: id, handle: parameters.handle, sector: sector, segmentCount: segments)
      for index in 0..<segments {
        request.setSegment(index, segment(page, left))
        page = pool.next(page)
        left -= Page.size
      }
      counters.directRequests &+= 1
    } else {
      request.setIndirect(
        wire, id: id, handle: parameters.handle, sector: sector, segmentCount: segments)
      var list = indirect.first
      for first in stride(from: 0, to: segments, by: BlkIf.segmentsPerIndirectPage) {
        request.setIndirectPage(first / BlkIf.segmentsPerIndirectPage, pool.reference(list))
        let entries = pool.memory(list)
        for index in 0..<min(BlkIf.segmentsPerIndirectPage, segments - first) {
          entries.put(segment(page, left), at: index)
          page = pool.next(page)
          left -= Page.size
        }
        list = pool.next(list)
      }
      counters.indirectRequests &+= 1
    }
    counters.segments &+= UInt64(segments)
    return page
  }

  /// The first `left` bytes of a page, or all of it.
  @inline(__always)
  private func segment(_ page: Int32, _ left: Int) -> Segment {
    Segment(
      reference: pool.reference(page), firstSector: 0,
      lastSector: UInt8((min(left, Page.size) >> 9) - 1))
  }

  /// Notes a request as in flight.
  ///
  /// - Returns: its id.
  private mutating func record(
    _ slot: Int32, _ wire: BlockOperation, _ role: InFlightRecord.Role, offset: UInt64 = 0,
    count: UInt64 = 0, own: PageList = PageList(), indirect: PageList = PageList()
  ) -> UInt64 {
    let place = inFlight.take()
    inFlight.records[place].operation = slot
    inFlight.records[place].wireOperation = wire.rawValue
    inFlight.records[place].isIndirect = !indirect.isEmpty
    inFlight.records[place].role = role
    inFlight.records[place].offset = offset
    inFlight.records[place].count = count
    inFlight.records[place].pages = own
    inFlight.records[place].indirectPages = indirect
    inFlight.records[place].issuedAt = time.now
    operations[slot].outstanding += 1
    return inFlight.id(place)
  }

  /// Reads the sectors that an unaligned write covers in part.
  ///
  /// `issued` counts the edges here.
  private mutating func issueEdges(_ slot: Int32) -> Bool {
    let sector = UInt64(parameters.sectorSize)
    let last = operations[slot].alignedCount - sector
    let end = operations[slot].byteOffset + operations[slot].byteCount
    let headIsPartial = operations[slot].byteOffset & (sector - 1) != 0
    let tailIsPartial = end & (sector - 1) != 0
    if operations[slot].issued == 0 {
      if headIsPartial || last == 0 {
        guard issueCopied(slot, offset: 0, atMost: sector, role: .edge) > 0 else { return false }
      }
      operations[slot].issued = 1
    }
    if operations[slot].issued == 1 {
      if tailIsPartial, last > 0 {
        guard issueCopied(slot, offset: last, atMost: sector, role: .edge) > 0 else { return false }
      }
      operations[slot].issued = 2
    }
    return true
  }

  /// Asks for durability: a flush, else an empty barrier (blkif.h: BLKIF_OP_FLUSH_DISKCACHE).
  private mutating func issueFlush(_ slot: Int32) -> Bool {
    guard parameters.flush != .none else {
      operations[slot].status = .notSupported
      return true
    }
    guard hasRingSlot() else { return false }
    let wire: BlockOperation = parameters.flush == .flushCache ? .flush : .writeBarrier
    let id = record(slot, wire, .flush)
    ring.enqueue().setDirect(wire, id: id, handle: parameters.handle, sector: 0, segmentCount: 0)
    counters.directRequests &+= 1
    return true
  }

  /// Discards the whole extents in an operation's range; parts of extents are left alone.
  private mutating func issueDiscard(_ slot: Int32) -> Bool {
    let secure = operations[slot].isSecure || parameters.secureDiscard
    guard let limits = parameters.discard, limits.secure || !secure else {
      operations[slot].status = .notSupported
      return true
    }
    let end = operations[slot].byteOffset + operations[slot].byteCount
    let size = parameters.sectorCount << 9
    guard let first = Self.extent(atOrAfter: operations[slot].byteOffset, limits) else { return true }
    // The last extent of the device may be a short one.
    let stop = end == size ? end : Self.extent(atOrBefore: end, limits)
    guard stop > first else { return true }
    guard hasRingSlot() else { return false }
    let id = record(slot, .discard, .discard)
    ring.enqueue().setDiscard(
      id: id, handle: parameters.handle, sector: first >> parameters.sectorShift,
      sectorCount: (stop - first) >> parameters.sectorShift,
      secure: secure)
    counters.directRequests &+= 1
    return true
  }

  private static func extent(atOrAfter offset: UInt64, _ limits: DiscardLimits) -> UInt64? {
    if offset <= limits.alignment { return limits.alignment }
    let over = (offset - limits.alignment) % limits.granularity
    if over == 0 { return offset }
    let (sum, overflow) = offset.addingReportingOverflow(limits.granularity - over)
    return overflow ? nil : sum
  }

  private static func extent(atOrBefore offset: UInt64, _ limits: DiscardLimits) -> UInt64 {
    guard offset > limits.alignment else { return 0 }
    return offset - (offset - limits.alignment) % limits.granularity
  }

  private mutating func hasRingSlot() -> Bool {
    if ring.freeSlots > 0 { return true }
    counters.waitsForRing &+= 1
    return false
  }

  /// Pages of a request's bytes.
  func pageCount(_ bytes: UInt64) -> Int {
    Int(
      truncatingIfNeeded: min(bytes + UInt64(Page.size - 1), UInt64(BlkIf.maxIndirectSegments) << Page.shift)
        >> UInt64(Page.shift))
  }
}
