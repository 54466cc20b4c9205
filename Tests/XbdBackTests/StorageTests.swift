// SPDX-License-Identifier: Apache-2.0

import TestSupport
import CXen
import Glibc
import Platform
import Synchronization
import Testing

@testable import XbdBack

/// A directory of a test's own, removed with its files at the end.
struct ScratchDirectory: ~Copyable {
  let path: String
  init() throws {
    path = try makeTemporaryDirectory("back")
  }
  func file(_ name: String) -> String { "\(path)/\(name)" }
  deinit {
    for name in ["disk", "other", "new"] { unlink("\(path)/\(name)") }
    rmdir(path)
  }
}

func makeImage(_ path: String, byteCount: Int) throws {
  let file = open(path, O_RDWR | O_CREAT, 0o600)
  guard file >= 0, ftruncate(file, off_t(byteCount)) == 0 else { throw TestFailure(what: "no image") }
  close(file)
}

/// One transfer of one stretch of memory, done however long it takes.
func transfer(
  _ storage: any Storage, _ operation: StorageRequest.Operation, at offset: UInt64, _ bytes: inout [UInt8]
) -> StorageOutcome {
  bytes.withUnsafeMutableBytes { memory in
    var vector = iovec(iov_base: memory.baseAddress, iov_len: memory.count)
    return withUnsafeMutablePointer(to: &vector) { pointer in
      var request = StorageRequest(
        operation, byteOffset: offset, byteCount: UInt64(memory.count),
        vectors: UnsafeMutableBufferPointer(start: pointer, count: 1))
      let outcome = storage.attempt(&request)
      return outcome == .wouldBlock ? storage.perform(&request) : outcome
    }
  }
}

func forget(_ storage: any Storage, at offset: UInt64, _ count: UInt64) -> StorageOutcome {
  var request = StorageRequest(.discard, byteOffset: offset, byteCount: count)
  return storage.perform(&request)
}

@Suite struct StorageTests {
  @Test func sizesAreReadAsPeopleWriteThem() throws {
    let good: [(String, UInt64)] = [
      ("0", 0), ("512", 512), ("512B", 512), ("1K", 1024), ("1k", 1024), ("4KiB", 4096), ("3M", 3 << 20),
      ("1G", 1 << 30), ("1GiB", 1 << 30), ("2T", 2 << 40), ("7EiB", 7 << 60),
    ]
    for (text, value) in good { #expect(try ByteSize.parse(text) == value, "\(text)") }
    for text in [
      "", "K", "1X", "-1", "+1", " 1", "1 G", "1.5G", "0x10", "1GB", "8E", "99999999999999999999", "1iB",
    ] {
      #expect(throws: StorageError.self, "\(text)") { try ByteSize.parse(text) }
    }
  }

  @Test func specificationsNameWhatTheySay() throws {
    #expect(try StorageSpecification(parsing: "memory:1G") == .memory(byteCount: 1 << 30))
    #expect(try StorageSpecification(parsing: "null:1T") == .null(byteCount: 1 << 40))
    #expect(try StorageSpecification(parsing: "/x/disk:1") == .file(path: "/x/disk:1"))
    #expect(try StorageSpecification(parsing: "./memory:1G") == .file(path: "./memory:1G"))
    for text in ["", "memory:", "null:x", "memory:-1"] {
      #expect(throws: StorageError.self) { try StorageSpecification(parsing: text) }
    }
    #expect(throws: StorageError.self) { try StorageSpecification(parsing: "memory:0").open() }
    #expect(throws: StorageError.self) { try StorageSpecification(parsing: "memory:513").open() }
    #expect(try StorageSpecification(parsing: "null:4K").open().byteCount == 4096)
  }

  @Test func anImageIsCreatedSparseOnlyWhenASizeIsGiven() throws {
    let scratch = try ScratchDirectory()
    let path = scratch.file("new")
    #expect { try FileStorage(path: path) } throws: {
      ($0 as? StorageError)?.code == .notFound && "\($0)".contains(path)
    }
    #expect(throws: StorageError.self) {
      try FileStorage(path: path, options: StorageOptions(createByteCount: 1000))
    }
    #expect(access(path, F_OK) != 0, "a refused size must not leave a file")
    let storage = try FileStorage(path: path, options: StorageOptions(createByteCount: 1 << 30))
    #expect(storage.byteCount == 1 << 30)
    var status = stat()
    #expect(stat(path, &status) == 0 && status.st_blocks < 64)
  }

  /// mktemp makes one, and so does whoever is killed while creating it.
  @Test func anEmptyImageIsMadeAsLargeAsANewOne() throws {
    let scratch = try ScratchDirectory()
    let path = scratch.file("empty")
    close(creat(path, 0o600))
    #expect { try FileStorage(path: path) } throws: { ($0 as? StorageError)?.code == .badSize }
    #expect(throws: StorageError.self) {
      try FileStorage(path: path, options: StorageOptions(createByteCount: 1000))
    }
    let readOnly = StorageOptions(readOnly: true, createByteCount: 4096)
    #expect(throws: StorageError.self) { try FileStorage(path: path, options: readOnly) }
    #expect(try FileStorage(path: path, options: StorageOptions(createByteCount: 8192)).byteCount == 8192)
    // One that has a size keeps it.
    #expect(try FileStorage(path: path, options: StorageOptions(createByteCount: 4096)).byteCount == 8192)
  }

  @Test func aSecondWriterIsRefusedWithTheImageNamed() throws {
    let scratch = try ScratchDirectory()
    let path = scratch.file("disk")
    try makeImage(path, byteCount: 1 << 20)
    var first: FileStorage? = try FileStorage(path: path)
    for readOnly in [false, true] {
      #expect { try FileStorage(path: path, options: StorageOptions(readOnly: readOnly)) } throws: {
        ($0 as? StorageError)?.code == .inUse && "\($0)".contains(path)
      }
    }
    #expect(first != nil)
    first = nil
    // A child that another test begins at this moment keeps the lock until it is another program.
    let readers = try (0..<2).map { _ in
      try FileStorage(path: path, options: StorageOptions(readOnly: true, lockPatience: 10_000))
    }
    #expect(readers.count == 2)
    #expect(throws: StorageError.self) { try FileStorage(path: path) }
  }

  @Test func anImageThatIsReleasedInTimeIsNotRefused() throws {
    let scratch = try ScratchDirectory()
    let path = scratch.file("disk")
    try makeImage(path, byteCount: 1 << 20)
    var first: FileStorage? = try FileStorage(path: path)
    let released = Mutex(false)
    let thread = try DedicatedThread(name: "releases") { [storage = consume first] in
      usleep(100_000)
      released.withLock { $0 = true }
      withExtendedLifetime(storage) {}
    }
    first = nil
    #expect(throws: Never.self) {
      _ = try FileStorage(path: path, options: StorageOptions(lockPatience: 60_000))
    }
    #expect(released.withLock { $0 })
    thread.join()
  }

  @Test func aSizeThatIsNoWholeNumberOfSectorsIsRefused() throws {
    let scratch = try ScratchDirectory()
    let path = scratch.file("disk")
    try makeImage(path, byteCount: 1536)
    #expect(try FileStorage(path: path).byteCount == 1536)
    // A child that another test begins at this moment keeps the lock until it is another program.
    let patient = StorageOptions(lockPatience: 10_000)
    #expect {
      try FileStorage(path: path, options: StorageOptions(sectorSize: 4096, lockPatience: 10_000))
    } throws: {
      ($0 as? StorageError)?.code == .badSize
    }
    try makeImage(path, byteCount: 1000)
    #expect { try FileStorage(path: path, options: patient) } throws: {
      ($0 as? StorageError)?.code == .badSize
    }
    try makeImage(path, byteCount: 0)
    #expect { try FileStorage(path: path, options: patient) } throws: {
      ($0 as? StorageError)?.code == .badSize
    }
    #expect { try FileStorage(path: scratch.path, options: StorageOptions(readOnly: true)) } throws: {
      ($0 as? StorageError) != nil
    }
  }

  @Test func bytesComeBackFromAFileAndFromMemory() throws {
    let scratch = try ScratchDirectory()
    try makeImage(scratch.file("disk"), byteCount: 1 << 20)
    for storage in [
      try FileStorage(path: scratch.file("disk")), try MemoryStorage(byteCount: 1 << 20),
    ] as [any Storage] {
      var written = (0..<8192).map { UInt8(truncatingIfNeeded: $0 &* 31) }
      #expect(transfer(storage, .write, at: 512, &written) == .done)
      var read = [UInt8](repeating: 0, count: 8192)
      #expect(transfer(storage, .read, at: 512, &read) == .done)
      #expect(read == written)
      var flush = StorageRequest(.flush, byteOffset: 0, byteCount: 0)
      #expect(storage.perform(&flush) == .done)
    }
  }

  @Test func aDiscardPunchesARealHole() throws {
    let scratch = try ScratchDirectory()
    let path = scratch.file("disk")
    try makeImage(path, byteCount: 1 << 20)
    let storage = try FileStorage(path: path)
    var bytes = [UInt8](repeating: 0xEE, count: 1 << 20)
    #expect(transfer(storage, .write, at: 0, &bytes) == .done)
    var flush = StorageRequest(.flush, byteOffset: 0, byteCount: 0)
    #expect(storage.perform(&flush) == .done)
    var before = stat()
    stat(path, &before)
    #expect(forget(storage, at: 65536, 1 << 19) == .done)
    var after = stat()
    stat(path, &after)
    #expect(after.st_blocks <= before.st_blocks - (1 << 19) / 512)
    #expect(after.st_size == before.st_size)
    let file = open(path, O_RDONLY)
    #expect(lseek(file, 0, cxen_SEEK_HOLE) == 65536)
    close(file)
    #expect(transfer(storage, .read, at: 0, &bytes) == .done)
    #expect(bytes[65535] == 0xEE && bytes[65536] == 0 && bytes[65536 + 1 << 19 - 1] == 0)
  }

  @Test func memoryThatIsDiscardedIsGivenBackAndZero() throws {
    let storage = try MemoryStorage(byteCount: 1 << 20)
    var bytes = [UInt8](repeating: 0xEE, count: 1 << 20)
    #expect(transfer(storage, .write, at: 0, &bytes) == .done)
    #expect(forget(storage, at: 512, 12288) == .done)
    #expect(forget(storage, at: 20480, 512) == .done)
    #expect(transfer(storage, .read, at: 0, &bytes) == .done)
    for (index, byte) in bytes.enumerated() {
      let gone = (512..<12800).contains(index) || (20480..<20992).contains(index)
      if (byte == 0) != gone {
        Issue.record("byte \(index) is \(byte)")
        break
      }
    }
  }

  @Test func aFlushReachesTheSystemExactlyWhenThereIsSomethingToFlush() throws {
    let scratch = try ScratchDirectory()
    try makeImage(scratch.file("disk"), byteCount: 1 << 20)
    let storage = try FileStorage(path: scratch.file("disk"))
    func flush() -> StorageOutcome {
      var request = StorageRequest(.flush, byteOffset: 0, byteCount: 0)
      let outcome = storage.attempt(&request)
      return outcome == .wouldBlock ? storage.perform(&request) : outcome
    }
    // What an earlier program left in the cache is not known to be on the disk.
    #expect(flush() == .done)
    #expect(storage.syncCount.load(ordering: .relaxed) == 1)
    #expect(flush() == .done)
    #expect(storage.syncCount.load(ordering: .relaxed) == 1)
    var bytes = [UInt8](repeating: 1, count: 512)
    #expect(transfer(storage, .write, at: 0, &bytes) == .done)
    #expect(flush() == .done)
    #expect(storage.syncCount.load(ordering: .relaxed) == 2)
    #expect(forget(storage, at: 0, 4096) == .done)
    #expect(flush() == .done)
    #expect(storage.syncCount.load(ordering: .relaxed) == 3)
  }

  // The kernel tells of what it could not write once: a second sync at the same time would hear that all is well.
  @Test func flushesAtTheSameTimeAreOneAfterTheOther() throws {
    let scratch = try ScratchDirectory()
    try makeImage(scratch.file("disk"), byteCount: 1 << 20)
    let storage = try FileStorage(path: scratch.file("disk"))
    for round in 1...200 as ClosedRange<UInt64> {
      var bytes = [UInt8](repeating: 1, count: 512)
      #expect(transfer(storage, .write, at: 0, &bytes) == .done)
      let threads = try (0..<3).map { index in
        try DedicatedThread(name: "flush-\(index)") {
          var request = StorageRequest(.flush, byteOffset: 0, byteCount: 0)
          _ = storage.perform(&request)
        }
      }
      for thread in threads { thread.join() }
      try #require(storage.syncCount.load(ordering: .relaxed) == round)
    }
  }

  @Test func aFileThatShrankBehindOurBackGivesAnError() throws {
    let scratch = try ScratchDirectory()
    let path = scratch.file("disk")
    try makeImage(path, byteCount: 1 << 20)
    let storage = try FileStorage(path: path)
    #expect(truncate(path, 4096) == 0)
    var bytes = [UInt8](repeating: 0, count: 8192)
    #expect(transfer(storage, .read, at: 0, &bytes) == .failed(EIO))
    #expect(transfer(storage, .read, at: 65536, &bytes) == .failed(EIO))
  }

  @Test func moreVectorsThanOneCallTakesAreAllTransferred() throws {
    let scratch = try ScratchDirectory()
    try makeImage(scratch.file("disk"), byteCount: 4 << 20)
    let storage = try FileStorage(path: scratch.file("disk"))
    let count = 3000
    let memory = UnsafeMutableRawPointer.allocate(byteCount: count * 1024, alignment: 4096)
    defer { memory.deallocate() }
    for index in 0..<count { memset(memory + index * 1024, Int32(index % 251), 512) }
    func run(_ operation: StorageRequest.Operation) -> StorageOutcome {
      var vectors = (0..<count).map { iovec(iov_base: memory + $0 * 1024, iov_len: 512) }
      return vectors.withUnsafeMutableBufferPointer {
        var request = StorageRequest(
          operation, byteOffset: 512, byteCount: UInt64(count * 512), vectors: $0)
        return storage.perform(&request)
      }
    }
    #expect(run(.write) == .done)
    memset(memory, 0xFF, count * 1024)
    #expect(run(.read) == .done)
    #expect((0..<count).allSatisfy { (memory + $0 * 1024).load(as: UInt8.self) == UInt8($0 % 251) })
  }

  @Test func aReadOnlyImageMayBeOnAReadOnlyFile() throws {
    let scratch = try ScratchDirectory()
    let path = scratch.file("disk")
    try makeImage(path, byteCount: 4096)
    chmod(path, 0o400)
    let storage = try FileStorage(path: path, options: StorageOptions(readOnly: true))
    #expect(storage.isReadOnly)
    #expect(throws: StorageError.self) { try storage.resize(to: 8192) }
  }

  @Test func nothingReadsAsZeroes() {
    let storage = NullStorage(byteCount: 1 << 40)
    var bytes = [UInt8](repeating: 9, count: 1024)
    #expect(transfer(storage, .write, at: 1 << 39, &bytes) == .done)
    #expect(transfer(storage, .read, at: 1 << 39, &bytes) == .done)
    #expect(bytes.allSatisfy { $0 == 0 })
  }

  /// Checked against the size of before, it comes from a worker when the disk has been cut off.
  @Test(arguments: [true, false])
  func regression_aWriteThatIsLateDoesNotUndoAShrink(isFile: Bool) throws {
    let scratch = try ScratchDirectory()
    try makeImage(scratch.file("disk"), byteCount: 1 << 20)
    let storage: any Storage =
      isFile
      ? try FileStorage(path: scratch.file("disk"))
      : try MemoryStorage(byteCount: 1 << 20)
    try storage.resize(to: 1 << 16)
    var bytes = [UInt8](repeating: 7, count: 4096)
    let outcome = bytes.withUnsafeMutableBytes { memory in
      var vector = iovec(iov_base: memory.baseAddress, iov_len: memory.count)
      return withUnsafeMutablePointer(to: &vector) { pointer in
        var request = StorageRequest(
          .write, byteOffset: 1 << 19, byteCount: 4096,
          vectors: UnsafeMutableBufferPointer(start: pointer, count: 1))
        return storage.perform(&request)
      }
    }
    #expect(outcome == .failed(EIO))
    #expect(try storage.refreshByteCount() == 1 << 16)
    try storage.resize(to: 1 << 20)
    #expect(transfer(storage, .read, at: 1 << 19, &bytes) == .done)
    #expect(bytes.allSatisfy { $0 == 0 })
  }
}
