// SPDX-License-Identifier: Apache-2.0
//
// Where bytes lie: copies between private memory and granted pages, and the memory of an operation as vectors.
// Nothing leaves a page for the caller but the bytes that were asked for, and nothing enters a page for the
// backend but the bytes of this request and zeroes.

internal import CXen
internal import Glibc
internal import Platform

extension QueueCore {
  /// Fills a write's pages from private memory, or with zeroes and the edges of an unaligned write of zeroes.
  ///
  /// - Parameters:
  ///   - offset: where in the operation's aligned range the pages begin.
  ///   - count: bytes; the rest of the last page is cleared.
  mutating func copyIn(_ slot: Int32, _ offset: UInt64, _ count: Int, _ pages: PageList) {
    let started = MonotonicClock.nanoseconds()
    let operation = operations[slot]
    var page = pages.first
    var done = 0
    while done < count {
      let length = min(Page.size, count - done)
      let target = pool.memory(page)
      if operation.command == .writeZeroes {
        target.clear()
        if let edges = operation.buffer { copyEdges(operation, edges, offset + UInt64(done), length, target) }
      } else if let buffer = operation.buffer {
        target.put(length, from: buffer, at: Int(offset) + done)
        if length < Page.size, !parameters.trusted { target.clear(from: length) }
        counters.bytesCopied &+= UInt64(length)
      }
      done += length
      page = pool.next(page)
    }
    counters.copyNanoseconds &+= MonotonicClock.nanoseconds() &- started
  }

  /// Puts the kept parts of the first and last sector over a page of zeroes.
  private func copyEdges(
    _ operation: OperationRecord, _ edges: PrivateBuffer, _ offset: UInt64, _ length: Int,
    _ target: GrantedPage
  ) {
    let sector = parameters.sectorSize
    let last = operation.alignedCount - UInt64(sector)
    if offset == 0 { target.put(min(sector, length), from: edges, at: 0) }
    if last > 0, last >= offset, last < offset + UInt64(length) {
      target.put(sector, to: Int(last - offset), from: edges, at: sector)
    }
  }

  /// Brings the bytes of a read that was answered into private memory.
  mutating func copyOut(_ record: InFlightRecord) {
    let operation = operations[record.operation]
    guard let buffer = operation.buffer else { return }
    let started = MonotonicClock.nanoseconds()
    var page = record.pages.first
    var done = 0
    while done < Int(record.count) {
      let length = min(Page.size, Int(record.count) - done)
      pool.memory(page).take(length, to: buffer, at: Int(record.offset) + done)
      done += length
      page = pool.next(page)
    }
    counters.bytesCopied &+= record.count
    counters.copyNanoseconds &+= MonotonicClock.nanoseconds() &- started
  }

  /// Brings the part of an edge sector that an unaligned write leaves alone into the write's own memory.
  mutating func copyEdgeOut(_ record: InFlightRecord) {
    let operation = operations[record.operation]
    guard let buffer = operation.buffer else { return }
    let page = pool.memory(record.pages.first)
    let sector = parameters.sectorSize
    // A write holds its whole range; a write of zeroes only the two edges.
    let place = operation.command == .write ? Int(record.offset) : record.offset == 0 ? 0 : sector
    // In bytes of this sector: what lies ahead of the caller's range, and what behind it.
    let start = Int(clamping: Int64(operation.byteOffset - operation.alignedOffset) - Int64(record.offset))
    let end = start + Int(operation.byteCount)
    if start > 0 { page.take(min(start, sector), to: buffer, at: place) }
    if end < sector {
      let kept = max(end, 0)
      page.take(sector - kept, from: kept, to: buffer, at: place + kept)
    }
    counters.bytesCopied &+= UInt64(sector)
  }

  /// Clears what an untrusted backend would otherwise see of earlier requests behind a write's end (XSA-403).
  mutating func clearTail(_ slot: Int32) {
    let used = Int(operations[slot].alignedCount) & (Page.size - 1)
    guard !parameters.trusted, used != 0, operations[slot].pages.count > 0 else { return }
    pool.memory(operations[slot].pages.last).clear(from: used)
  }

  /// The caller's bytes of an operation as I/O vectors.
  ///
  /// - Parameters:
  ///   - byteOffset: where in the caller's range to start.
  ///   - vectors: filled from the front; of granted pages no more are named than there are vectors, although neighbours
  ///     in memory share one.
  /// - Returns: how many were filled.
  mutating func vectors(
    of id: OperationID, from byteOffset: Int, into vectors: UnsafeMutableBufferPointer<iovec>
  ) -> Int {
    guard id.index < Self.operationCapacity, operations[id.index].generation == id.generation,
      byteOffset >= 0
    else { return 0 }
    let operation = operations[id.index]
    // SAFETY: a local, gone before the caller's vectors are.
    var list = unsafe VectorList(vectors)
    guard operation.state == .begun || operation.state == .done, byteOffset < Int(operation.byteCount),
      !list.isFull
    else { return 0 }
    var position = Int(operation.byteOffset - operation.alignedOffset) + byteOffset
    let end = position + Int(operation.byteCount) - byteOffset
    if let buffer = operation.buffer {
      list.append(buffer, end - position, at: position)
      return list.count
    }
    guard operation.pages.count > 0 else { return 0 }
    var page = shownPage(id.index, Int32(truncatingIfNeeded: position >> Page.shift))
    var named = 0
    while position < end, named < vectors.count {
      named += 1
      let within = position & (Page.size - 1)
      let length = min(Page.size - within, end - position)
      list.append(pool.memory(page), length, at: within)
      position += length
      page = pool.next(page)
    }
    return list.count
  }

  /// The page at a place in an operation's list, found from where its caller was shown some last.
  ///
  /// - Parameter wanted: 0 to one less than there are pages.
  private mutating func shownPage(_ slot: Int, _ wanted: Int32) -> Int32 {
    if wanted < operations[slot].shownIndex {
      operations[slot].shownIndex = 0
      operations[slot].shownPage = operations[slot].pages.first
    }
    var page = operations[slot].shownPage
    for _ in operations[slot].shownIndex..<wanted { page = pool.next(page) }
    operations[slot].shownIndex = wanted
    operations[slot].shownPage = page
    return page
  }
}
