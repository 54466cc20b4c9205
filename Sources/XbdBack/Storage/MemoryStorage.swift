// SPDX-License-Identifier: Apache-2.0
//
// A disk in this process's memory: pages come into being when they are written and go when they are discarded.

internal import Glibc
internal import Platform
internal import Synchronization
internal import SystemPackage

/// A disk in anonymous memory; its contents end with it.
public final class MemoryStorage: Storage {
  private let region: MappedRegion
  private let size: Atomic<UInt64>
  /// Whether writes are refused.
  public let isReadOnly: Bool

  /// A disk full of zeroes that takes no memory yet.
  ///
  /// - Parameters:
  ///   - byteCount: its size.
  ///   - growthLimit: how large `resize` can make it; address space for that is set aside, memory is not. Nil
  ///     takes eight times the size.
  ///   - readOnly: whether writes are refused.
  public init(byteCount: UInt64, growthLimit: UInt64? = nil, readOnly: Bool = false) throws(StorageError) {
    // 46 bits: what a process on x86_64 and arm64 can have altogether.
    let most: UInt64 = 1 << 46
    let wanted = max(byteCount, growthLimit ?? min(byteCount &* 8, most))
    guard byteCount > 0, byteCount < most, wanted <= most else {
      throw StorageError(
        .badSize, "a memory disk of \(byteCount) bytes is not possible; the address space ends at \(most)")
    }
    do {
      region = try MappedRegion(reserving: Int(wanted))
    } catch {
      throw StorageError(
        .system, "no address space for a memory disk of \(byteCount) bytes (\(error)); make it smaller")
    }
    // The reservation stays unaccounted (MAP_NORESERVE) when it becomes accessible.
    // SAFETY: the whole of the region, which nobody uses yet.
    guard unsafe mprotect(region.baseAddress, region.byteCount, PROT_READ | PROT_WRITE) == 0 else {
      throw StorageError(
        .system, "no memory for a memory disk of \(byteCount) bytes (\(Errno.current)); make it smaller")
    }
    size = Atomic(byteCount)
    isReadOnly = readOnly
  }

  /// "memory".
  public var description: String { "memory" }
  /// The size in bytes.
  public var byteCount: UInt64 { size.load(ordering: .relaxed) }
  /// A page: what the system takes back.
  public var discardGranularity: Int? { Page.size }
  /// The pages are gone for good.
  public var canDiscardSecurely: Bool { true }
  /// Anything goes.
  public var requiredAlignment: Int { 512 }

  /// Never has to wait.
  public func attempt(_ request: inout StorageRequest) -> StorageOutcome { perform(&request) }

  /// Copies between the vectors and the disk.
  public func perform(_ request: inout StorageRequest) -> StorageOutcome {
    // Checked again here: nothing may ever be copied past the region, and nothing be left where the disk was cut off.
    let (end, overflow) = request.byteOffset.addingReportingOverflow(request.byteCount)
    let limit = request.operation == .read ? UInt64(region.byteCount) : byteCount
    guard !overflow, end <= limit else { return .failed(EIO) }
    // SAFETY: within the region. The vectors are the request's own, and their sum is its `byteCount` (`StorageRequest`).
    var position = unsafe region.baseAddress + Int(request.byteOffset)
    switch request.operation {
    case .read:
      for index in unsafe request.vectors.indices {
        let vector = unsafe request.vectors[index]
        guard let base = unsafe vector.iov_base else { continue }
        unsafe memcpy(base, position, vector.iov_len)
        unsafe position += vector.iov_len
      }
    case .write:
      for index in unsafe request.vectors.indices {
        let vector = unsafe request.vectors[index]
        // SAFETY: as above.
        guard let base = unsafe vector.iov_base else { continue }
        unsafe memcpy(position, base, vector.iov_len)
        unsafe position += vector.iov_len
      }
    case .flush:
      break
    case .discard, .secureDiscard:
      // SAFETY: as above.
      unsafe forget(position, Int(request.byteCount))
    }
    return .done
  }

  /// Changes only through `resize`.
  public func refreshByteCount() throws(StorageError) -> UInt64 { byteCount }

  /// Grows up to the growth limit, or shrinks; what is cut off is zero when it comes back.
  public func resize(to byteCount: UInt64) throws(StorageError) {
    try StorageOptions.check(byteCount, multipleOf: 512, what: "a memory disk")
    guard byteCount <= UInt64(region.byteCount) else {
      throw StorageError(
        .badSize,
        "this memory disk can grow to \(region.byteCount) bytes, not to \(byteCount); create it with a larger growth "
          + "limit")
    }
    let old = size.exchange(byteCount, ordering: .relaxed)
    // SAFETY: both sizes are at most the region's.
    if byteCount < old { unsafe forget(region.baseAddress + Int(byteCount), Int(old - byteCount)) }
  }

  /// Gives whole pages back and clears what is left of the others.
  private func forget(_ start: UnsafeMutableRawPointer, _ byteCount: Int) {
    // SAFETY: everything from `start` to `end`, which the caller has within the region: whole pages in the middle to the
    // system, the rest cleared here.
    let end = unsafe start + byteCount
    let mask = UInt(Page.size - 1)
    let firstPage = UInt(bitPattern: start) &+ mask & ~mask
    let endPage = UInt(bitPattern: end) & ~mask
    guard firstPage < endPage, let pages = unsafe UnsafeMutableRawPointer(bitPattern: firstPage),
      unsafe madvise(pages, Int(endPage - firstPage), MADV_DONTNEED) == 0
    else {
      unsafe memset(start, 0, byteCount)
      return
    }
    // SAFETY: as above.
    unsafe memset(start, 0, pages - start)
    let tail = unsafe pages + Int(endPage - firstPage)
    unsafe memset(tail, 0, end - tail)
  }
}
