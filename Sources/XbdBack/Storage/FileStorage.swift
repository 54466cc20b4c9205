// SPDX-License-Identifier: Apache-2.0
//
// A disk in a file or block device. The page cache does the caching; what is in it is read on the queue's own
// thread (preadv2 with RWF_NOWAIT), what is not, and everything that waits for the disk, goes to a worker.

internal import CXen
internal import Glibc
internal import Platform
internal import Synchronization
internal import SystemPackage

/// A disk in a file or block device, locked against a second writer for as long as it is open.
public final class FileStorage: Storage {
  private let file: OwnedDescriptor
  private let path: String
  private let sectorSize: Int
  private let isBlockDevice: Bool
  private let size: Atomic<UInt64>
  /// Raised with every completed change; what a flush has covered is in `flushed`.
  private let changes = Atomic<UInt64>(1)
  private let flushed = Atomic<UInt64>(0)
  /// Set for good once the system has said that it lost something (fsync(2): only one caller is told).
  private let lostWrites = Atomic<Bool>(false)
  /// Cleared when the file system turns out not to have RWF_NOWAIT.
  private let canTryReading = Atomic<Bool>(true)
  private let canPunch = Atomic<Bool>(true)
  /// Held while the system is asked to make the file durable.
  private let syncing = Monitor()
  private let resizing = Monitor()
  /// Times that the system was asked to make the file durable.
  let syncCount = Atomic<UInt64>(0)

  /// Whether writes are refused.
  public let isReadOnly: Bool
  /// The file system's or device's block.
  public let discardGranularity: Int?
  /// Only a block device can, and only some.
  public var canDiscardSecurely: Bool { isBlockDevice }
  /// A block device's own sector; any for a file.
  public let requiredAlignment: Int

  /// Opens an image, or creates a sparse one when the options give a size and there is none.
  ///
  /// - Throws: `.notFound`, `.inUse`, `.badSize`, `.unsuitable` or `.system`, naming the path.
  public init(path: String, options: StorageOptions = StorageOptions()) throws(StorageError) {
    let descriptor = try Self.open(path, options)
    file = descriptor.file
    self.path = path
    sectorSize = options.sectorSize
    isReadOnly = options.readOnly
    try Self.lock(file.raw, path, exclusive: !options.readOnly, milliseconds: options.lockPatience)
    var status = stat()
    // SAFETY: the call fills the local variable.
    guard unsafe fstat(file.raw, &status) == 0 else {
      throw StorageError(.system, "cannot look at \(path): \(Errno.current)")
    }
    try Self.requireDisk(status, path)
    // One that is there and empty, as mktemp makes it, or whoever was killed while creating it, is as good as none.
    let isEmpty = cxen_is_regular_file(status.st_mode) != 0 && status.st_size == 0
    if isEmpty, !options.readOnly, let wanted = options.createByteCount {
      try StorageOptions.check(wanted, multipleOf: options.sectorSize, what: "a new image")
      if ftruncate(file.raw, off_t(wanted)) != 0 {
        let reason = Errno.current
        // SAFETY: a string that the call reads.
        if descriptor.created { unsafe unlink(path) }
        throw StorageError(.system, "cannot give the new image \(path) its \(wanted) bytes: \(reason)")
      }
    }
    var alignment = 512
    isBlockDevice = cxen_is_block_device(status.st_mode) != 0
    if isBlockDevice {
      var bytes: Int32 = 0
      // SAFETY: the call fills the local variable.
      if unsafe cxen_block_device_sector_size(file.raw, &bytes) == 0, bytes > 512 { alignment = Int(bytes) }
    }
    requiredAlignment = alignment
    discardGranularity = max(alignment, isBlockDevice ? 512 : min(max(Int(status.st_blksize), 512), 1 << 20))
    let byteCount = try Self.measure(file.raw, path, isBlockDevice)
    try StorageOptions.check(byteCount, multipleOf: options.sectorSize, what: "the image \(path)")
    size = Atomic(byteCount)
  }

  /// The path.
  public var description: String { path }
  /// The size in bytes when it was last looked at.
  public var byteCount: UInt64 { size.load(ordering: .relaxed) }

  /// Reads what is cached and writes into the cache; everything else would wait.
  public func attempt(_ request: inout StorageRequest) -> StorageOutcome {
    switch request.operation {
    case .read:
      // SAFETY: the request's own vectors, counted.
      guard unsafe request.vectors.count <= Self.vectorsPerCall else { return .wouldBlock }
      guard canTryReading.load(ordering: .relaxed) else { return transfer(&request) }
      let count = unsafe cxen_preadv2(
        file.raw, request.vectors.baseAddress, Int32(request.vectors.count), off_t(request.byteOffset),
        cxen_RWF_NOWAIT)
      if count == Int(request.byteCount) { return .done }
      if count < 0, errno == EOPNOTSUPP {
        // tmpfs of old and a few others; the pages of tmpfs are in memory anyway.
        canTryReading.store(false, ordering: .relaxed)
        return transfer(&request)
      }
      return .wouldBlock
    case .write:
      return transfer(&request)
    case .flush:
      if lostWrites.load(ordering: .relaxed) { return .failed(EIO) }
      // Pairs with the .releasing addition after a change and the .releasing store after a flush.
      let needed = changes.load(ordering: .acquiring)
      return flushed.load(ordering: .acquiring) >= needed ? .done : .wouldBlock
    case .discard, .secureDiscard:
      return .wouldBlock
    }
  }

  /// Does the work and waits for it.
  public func perform(_ request: inout StorageRequest) -> StorageOutcome {
    switch request.operation {
    case .read: transfer(&request)
    case .write: writeLate(&request)
    case .flush: flush()
    case .discard: discard(request.byteOffset, request.byteCount)
    case .secureDiscard:
      if cxen_block_device_discard(file.raw, request.byteOffset, request.byteCount, 1) == 0 {
        changed()
      } else {
        Self.outcome(errno)
      }
    }
  }

  /// Asks the system for the size.
  public func refreshByteCount() throws(StorageError) -> UInt64 {
    let byteCount = try Self.measure(file.raw, path, isBlockDevice)
    try StorageOptions.check(byteCount, multipleOf: sectorSize, what: "the image \(path)")
    size.store(byteCount, ordering: .relaxed)
    return byteCount
  }

  /// Sets the file's length; a block device has the size that it has.
  public func resize(to byteCount: UInt64) throws(StorageError) {
    try StorageOptions.check(byteCount, multipleOf: sectorSize, what: "the image \(path)")
    guard !isBlockDevice else {
      throw StorageError(
        .unsuitable, "the block device \(path) cannot be resized from here; resize it where it was made")
    }
    guard !isReadOnly else {
      throw StorageError(.unsuitable, "the image \(path) is open for reading only, so it cannot be resized")
    }
    let result = resizing.withLock {
      let result = ftruncate(file.raw, off_t(byteCount))
      if result == 0 { size.store(byteCount, ordering: .relaxed) }
      return result
    }
    guard result == 0 else {
      throw StorageError(.system, "cannot resize the image \(path) to \(byteCount) bytes: \(Errno.current)")
    }
    _ = changed()
  }

  /// A write whose range was checked a while ago: behind an end that has come nearer it would make the file longer again.
  private func writeLate(_ request: inout StorageRequest) -> StorageOutcome {
    resizing.withLock {
      let (end, overflow) = request.byteOffset.addingReportingOverflow(request.byteCount)
      guard !overflow, end <= byteCount else { return .failed(EIO) }
      return transfer(&request)
    }
  }

  /// What one preadv or pwritev takes (IOV_MAX).
  private static let vectorsPerCall = 1024

  private func transfer(_ request: inout StorageRequest) -> StorageOutcome {
    let writing = request.operation == .write
    // SAFETY: the request's own vectors, of which `vectorsLeft` are left from `vector` on; their bytes are its caller's to
    // read or write. A vector is shortened by what was done of it.
    guard var vector = unsafe request.vectors.baseAddress else { return .done }
    var vectorsLeft = unsafe request.vectors.count
    var offset = off_t(request.byteOffset)
    var left = Int(request.byteCount)
    while left > 0, vectorsLeft > 0 {
      let batch = Int32(min(vectorsLeft, Self.vectorsPerCall))
      // SAFETY: as above. One piece, as most requests are, spares the system the list.
      let count =
        if batch == 1 {
          unsafe writing
            ? pwrite(file.raw, vector.pointee.iov_base, vector.pointee.iov_len, offset)
            : pread(file.raw, vector.pointee.iov_base, vector.pointee.iov_len, offset)
        } else {
          unsafe writing ? pwritev(file.raw, vector, batch, offset) : preadv(file.raw, vector, batch, offset)
        }
      if count < 0 {
        if errno == EINTR { continue }
        return .failed(errno)
      }
      // The file was made shorter behind our back: there is nothing to read any more.
      if count == 0 { return .failed(EIO) }
      left -= count
      offset += off_t(count)
      var done = count
      // SAFETY: as above.
      while vectorsLeft > 0, unsafe done >= vector.pointee.iov_len {
        unsafe done -= vector.pointee.iov_len
        unsafe vector += 1
        vectorsLeft -= 1
      }
      if done > 0 {
        unsafe vector.pointee.iov_base = vector.pointee.iov_base.map { unsafe $0 + done }
        unsafe vector.pointee.iov_len -= done
      }
    }
    return writing ? changed() : .done
  }

  /// Notes that there is something to flush.
  @discardableResult
  private func changed() -> StorageOutcome {
    changes.wrappingAdd(1, ordering: .releasing)
    return .done
  }

  private func flush() -> StorageOutcome {
    // What the kernel could not write it says to one caller only: a second one at the same time would be told that all is well.
    syncing.withLock { sync() }
  }

  private func sync() -> StorageOutcome {
    if lostWrites.load(ordering: .relaxed) { return .failed(EIO) }
    let covered = changes.load(ordering: .acquiring)
    // Somebody else's covers it.
    if flushed.load(ordering: .acquiring) >= covered { return .done }
    syncCount.wrappingAdd(1, ordering: .relaxed)
    guard fdatasync(file.raw) == 0 else {
      let code = errno
      if code == EINTR { return .failed(EIO) }
      lostWrites.store(true, ordering: .relaxed)
      return .failed(code)
    }
    _ = flushed.max(covered, ordering: .releasing)
    return .done
  }

  private func discard(_ offset: UInt64, _ byteCount: UInt64) -> StorageOutcome {
    guard canPunch.load(ordering: .relaxed) else { return .notSupported }
    let result =
      isBlockDevice
      ? cxen_block_device_discard(file.raw, offset, byteCount, 0)
      : cxen_fallocate(
        file.raw, cxen_FALLOC_FL_PUNCH_HOLE | cxen_FALLOC_FL_KEEP_SIZE, off_t(offset), off_t(byteCount))
    if result == 0 { return changed() }
    let outcome = Self.outcome(errno)
    if outcome == .notSupported { canPunch.store(false, ordering: .relaxed) }
    return outcome
  }

  private static func outcome(_ code: Int32) -> StorageOutcome {
    code == EOPNOTSUPP || code == ENOTTY || code == ENOSYS ? .notSupported : .failed(code)
  }
}
