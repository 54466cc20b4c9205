// SPDX-License-Identifier: Apache-2.0
//
// A disk in memory with a gate. While that is shut, every request that comes to the backend waits with the backend's
// workers: it is in flight for as long as a test wants it to be, and no test has to guess at times.

import Glibc
import Platform
import Synchronization
import XbdBack

final class GatedStorage: Storage {
  private let inner: MemoryStorage
  /// Readable while the gate is open; nobody drains it but `shut`.
  private let opened: EventCounter
  private let isShut = Atomic<Bool>(false)
  private let losing = Atomic<Bool>(false)
  private let heldCount = Atomic<Int>(0)
  private let lostCount = Atomic<Int>(0)

  init(byteCount: UInt64) throws {
    inner = try MemoryStorage(byteCount: byteCount)
    opened = try EventCounter()
  }

  /// Keeps everything that comes from now on.
  func shut() {
    opened.drain()
    losing.store(false, ordering: .sequentiallyConsistent)
    isShut.store(true, ordering: .sequentiallyConsistent)
  }

  /// Lets everything through that was kept.
  func open() {
    isShut.store(false, ordering: .sequentiallyConsistent)
    opened.signal()
  }

  /// As when the process dies that has the requests: every other one is done, and what is said of any is not true.
  ///
  /// Only where nobody looks at the answers.
  func lose() {
    losing.store(true, ordering: .sequentiallyConsistent)
    open()
  }

  /// Requests that are kept at the moment.
  var held: Int { heldCount.load(ordering: .sequentiallyConsistent) }

  func attempt(_ request: inout StorageRequest) -> StorageOutcome {
    guard isShut.load(ordering: .sequentiallyConsistent) else { return inner.attempt(&request) }
    heldCount.add(1, ordering: .sequentiallyConsistent)
    return .wouldBlock
  }

  func perform(_ request: inout StorageRequest) -> StorageOutcome {
    var look = pollfd(fd: opened.fileDescriptor, events: Int16(POLLIN), revents: 0)
    while isShut.load(ordering: .sequentiallyConsistent) { _ = poll(&look, 1, 1000) }
    if losing.load(ordering: .sequentiallyConsistent) {
      if lostCount.add(1, ordering: .sequentiallyConsistent).newValue % 2 == 0 { _ = inner.perform(&request) }
      return .failed(EIO)
    }
    return inner.perform(&request)
  }

  /// What is on the disk, whatever becomes of its backend.
  func bytes(_ offset: Int, _ count: Int) -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: count)
    bytes.withUnsafeMutableBytes { memory in
      var vector = iovec(iov_base: memory.baseAddress, iov_len: count)
      withUnsafeMutablePointer(to: &vector) { vectors in
        var request = StorageRequest(
          .read, byteOffset: UInt64(offset), byteCount: UInt64(count),
          vectors: UnsafeMutableBufferPointer(start: vectors, count: 1))
        _ = inner.perform(&request)
      }
    }
    return bytes
  }

  /// Forgets those that were kept and have been let go of without an answer.
  func forgetHeld() {
    heldCount.store(0, ordering: .sequentiallyConsistent)
    losing.store(false, ordering: .sequentiallyConsistent)
  }

  var description: String { inner.description }
  var byteCount: UInt64 { inner.byteCount }
  var isReadOnly: Bool { inner.isReadOnly }
  var discardGranularity: Int? { inner.discardGranularity }
  var canDiscardSecurely: Bool { inner.canDiscardSecurely }
  var requiredAlignment: Int { inner.requiredAlignment }
  func refreshByteCount() throws(StorageError) -> UInt64 { try inner.refreshByteCount() }
  func resize(to byteCount: UInt64) throws(StorageError) { try inner.resize(to: byteCount) }
}
