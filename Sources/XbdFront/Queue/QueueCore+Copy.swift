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
    let operation = operations[Int(slot)]
    var page = pages.first
    var done = 0
    while done < count {
      let length = min(Page.size, count - done)
      let target = pool.address(page)
      if operation.command == .writeZeroes {
        memset(target, 0, Page.size)
        if let edges = operation.buffer { copyEdges(operation, edges, offset + UInt64(done), length, target) }
      } else if let buffer = operation.buffer {
        memcpy(target, buffer + Int(offset) + done, length)
        if length < Page.size, !parameters.trusted { memset(target + length, 0, Page.size - length) }
        counters.bytesCopied &+= UInt64(length)
      }
      done += length
      page = pool.next(page)
    }
    counters.copyNanoseconds &+= MonotonicClock.nanoseconds() &- started
  }

  /// Puts the kept parts of the first and last sector over a page of zeroes.
  private func copyEdges(
    _ operation: OperationRecord, _ edges: UnsafeMutableRawPointer, _ offset: UInt64, _ length: Int,
    _ target: UnsafeMutableRawPointer
  ) {
    let sector = parameters.sectorSize
    let last = operation.alignedCount - UInt64(sector)
    if offset == 0 { memcpy(target, edges, min(sector, length)) }
    if last > 0, last >= offset, last < offset + UInt64(length) {
      memcpy(target + Int(last - offset), edges + sector, sector)
    }
  }

  /// Brings the bytes of a read that was answered into private memory.
  mutating func copyOut(_ record: InFlightRecord) {
    let operation = operations[Int(record.operation)]
    guard let buffer = operation.buffer else { return }
    let started = MonotonicClock.nanoseconds()
    var page = record.pages.first
    var done = 0
    while done < Int(record.count) {
      let length = min(Page.size, Int(record.count) - done)
      memcpy(buffer + Int(record.offset) + done, pool.address(page), length)
      done += length
      page = pool.next(page)
    }
    counters.bytesCopied &+= record.count
    counters.copyNanoseconds &+= MonotonicClock.nanoseconds() &- started
  }

  /// Brings the part of an edge sector that an unaligned write leaves alone into the write's own memory.
  mutating func copyEdgeOut(_ record: InFlightRecord) {
    let operation = operations[Int(record.operation)]
    guard let buffer = operation.buffer else { return }
    let page = pool.address(record.pages.first)
    let sector = parameters.sectorSize
    // A write holds its whole range; a write of zeroes only the two edges.
    let place: UnsafeMutableRawPointer =
      operation.command == .write
      ? buffer + Int(record.offset) : buffer + (record.offset == 0 ? 0 : sector)
    // In bytes of this sector: what lies ahead of the caller's range, and what behind it.
    let start = Int(clamping: Int64(operation.byteOffset - operation.alignedOffset) - Int64(record.offset))
    let end = start + Int(operation.byteCount)
    if start > 0 { memcpy(place, page, min(start, sector)) }
    if end < sector { memcpy(place + max(end, 0), page + max(end, 0), sector - max(end, 0)) }
    counters.bytesCopied &+= UInt64(sector)
  }

  /// Clears what an untrusted backend would otherwise see of earlier requests behind a write's end (XSA-403).
  mutating func clearTail(_ operation: UnsafeMutablePointer<OperationRecord>) {
    let used = Int(operation.pointee.alignedCount) & (Page.size - 1)
    guard !parameters.trusted, used != 0, operation.pointee.pages.count > 0 else { return }
    memset(pool.address(operation.pointee.pages.last) + used, 0, Page.size - used)
  }

  /// The caller's bytes of an operation as I/O vectors.
  ///
  /// - Parameters:
  ///   - byteOffset: where in the caller's range to start.
  ///   - vectors: filled from the front.
  /// - Returns: how many were filled.
  func vectors(
    of id: OperationID, from byteOffset: Int, into vectors: UnsafeMutableBufferPointer<iovec>
  ) -> Int {
    guard id.index < Self.operationCapacity, operations[id.index].generation == id.generation,
      byteOffset >= 0
    else { return 0 }
    let operation = operations + id.index
    guard operation.pointee.state == .begun || operation.pointee.state == .done,
      byteOffset < Int(operation.pointee.byteCount), !vectors.isEmpty
    else { return 0 }
    var position = Int(operation.pointee.byteOffset - operation.pointee.alignedOffset) + byteOffset
    let end = position + Int(operation.pointee.byteCount) - byteOffset
    if let buffer = operation.pointee.buffer {
      vectors[0] = iovec(iov_base: buffer + position, iov_len: end - position)
      return 1
    }
    guard operation.pointee.pages.count > 0 else { return 0 }
    var page = operation.pointee.pages.first
    for _ in 0..<(position >> Page.shift) { page = pool.next(page) }
    var count = 0
    while position < end, count < vectors.count {
      let within = position & (Page.size - 1)
      let length = min(Page.size - within, end - position)
      let address = pool.address(page) + within
      // Neighbours in memory become one vector.
      if count > 0, let base = vectors[count - 1].iov_base, base + vectors[count - 1].iov_len == address {
        vectors[count - 1].iov_len += length
      } else {
        vectors[count] = iovec(iov_base: address, iov_len: length)
        count += 1
      }
      position += length
      page = pool.next(page)
    }
    return count
  }
}
