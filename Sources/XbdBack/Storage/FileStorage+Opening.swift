// SPDX-License-Identifier: Apache-2.0
//
// An image before it is a disk: opened or created, claimed if it is a block device, locked against a second writer.

internal import CXen
internal import Glibc
public import Platform
internal import SystemPackage

extension FileStorage {
  /// Keeps an image that exists from other writers, for a backend in another program that does not.
  ///
  /// - Parameters:
  ///   - readOnly: only writers are kept away, and a block device is not claimed.
  ///   - patience: milliseconds to wait while it is in use.
  /// - Returns: what keeps it for as long as it is open; nil when there is nothing at the path.
  /// - Throws: `.inUse`, `.unsuitable` or `.system`, naming the path.
  public static func claim(
    _ path: String, readOnly: Bool, patience: UInt64
  ) throws(StorageError) -> OwnedDescriptor? {
    let opened: Opened
    do throws(StorageError) {
      opened = try open(path, StorageOptions(readOnly: readOnly, lockPatience: patience))
    } catch {
      if error.code == .notFound { return nil }
      throw error
    }
    try lock(opened.file.raw, path, exclusive: !readOnly, milliseconds: patience)
    return opened.file
  }

  static func requireDisk(_ status: stat, _ path: String) throws(StorageError) {
    guard cxen_is_regular_file(status.st_mode) != 0 || cxen_is_block_device(status.st_mode) != 0 else {
      throw StorageError(.unsuitable, "\(path) is neither a file nor a block device, so it cannot be a disk")
    }
  }

  struct Opened: ~Copyable {
    let file: OwnedDescriptor
    let created: Bool
  }

  static func open(_ path: String, _ options: StorageOptions) throws(StorageError) -> Opened {
    // A FIFO would wait for somebody to write into it.
    var status = stat()
    var flags = (options.readOnly ? O_RDONLY : O_RDWR) | cxen_O_CLOEXEC
    // SAFETY: a string that the call reads, and a local variable that it fills.
    if unsafe stat(path, &status) == 0 {
      try requireDisk(status, path)
      // Nobody who mounts a block device, or has it in a volume, sees our lock: this claims it (open(2): O_EXCL).
      if cxen_is_block_device(status.st_mode) != 0, !options.readOnly { flags |= O_EXCL }
    }
    let deadline = MonotonicClock.nanoseconds() &+ options.lockPatience &* 1_000_000
    var reason: Errno
    repeat {
      // SAFETY: a string that the call reads.
      let existing = unsafe Glibc.open(path, flags)
      if existing >= 0 { return Opened(file: OwnedDescriptor(existing), created: false) }
      reason = .current
      // A backend that was killed keeps its claim until what it wrote is on the disk.
      if reason == .resourceBusy, options.lockPatience > 0 { usleep(10_000) }
    } while reason == .resourceBusy && MonotonicClock.nanoseconds() < deadline
    guard reason != .resourceBusy else {
      throw StorageError(
        .inUse, "the block device \(path) is in use, mounted or by another program; stop that first")
    }
    guard reason == .noSuchFileOrDirectory else {
      let purpose = options.readOnly ? "reading" : "reading and writing"
      throw StorageError(.system, "cannot open the image \(path) for \(purpose): \(reason)")
    }
    guard options.createByteCount == nil || !options.readOnly else {
      throw StorageError(
        .notFound, "there is no image \(path), and one that is only read is not created; name one that exists"
      )
    }
    guard let wanted = options.createByteCount else {
      throw StorageError(
        .notFound, "there is no image \(path); name one that exists, or give a size to create it")
    }
    try StorageOptions.check(wanted, multipleOf: options.sectorSize, what: "a new image")
    // SAFETY: as above.
    let created = unsafe Glibc.open(path, flags | O_CREAT | O_EXCL, 0o600)
    guard created >= 0 else {
      throw StorageError(.system, "cannot create the image \(path): \(Errno.current)")
    }
    return Opened(file: OwnedDescriptor(created), created: true)
  }

  static func lock(
    _ descriptor: Int32, _ path: String, exclusive: Bool, milliseconds: UInt64
  ) throws(StorageError) {
    let deadline = MonotonicClock.nanoseconds() &+ milliseconds &* 1_000_000
    var reason = Errno.wouldBlock
    repeat {
      guard cxen_lock_whole_file(descriptor, exclusive ? 1 : 0) != 0 else { return }
      reason = .current
      if milliseconds > 0 { usleep(10_000) }
    } while reason == .wouldBlock && MonotonicClock.nanoseconds() < deadline
    guard reason == .wouldBlock else {
      throw StorageError(.system, "cannot lock the image \(path): \(reason)")
    }
    throw StorageError(
      .inUse,
      exclusive
        ? "the image \(path) is in use by another program; stop that one first"
        : "the image \(path) is being written by another program; stop that one first")
  }

  static func measure(
    _ descriptor: Int32, _ path: String, _ isBlockDevice: Bool
  ) throws(StorageError) -> UInt64 {
    if isBlockDevice {
      var bytes: UInt64 = 0
      // SAFETY: the call fills the local variable.
      guard unsafe cxen_block_device_size(descriptor, &bytes) == 0 else {
        throw StorageError(.system, "cannot ask the block device \(path) for its size: \(Errno.current)")
      }
      return bytes
    }
    var status = stat()
    // SAFETY: the call fills the local variable.
    guard unsafe fstat(descriptor, &status) == 0 else {
      throw StorageError(.system, "cannot look at the image \(path): \(Errno.current)")
    }
    return UInt64(max(0, status.st_size))
  }
}
