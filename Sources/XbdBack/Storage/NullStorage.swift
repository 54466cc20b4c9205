// SPDX-License-Identifier: Apache-2.0
//
// A disk that is not there: for measuring everything but the disk.

internal import Glibc
internal import Synchronization

/// Reads give zeroes, writes vanish.
public final class NullStorage: Storage {
  private let size: Atomic<UInt64>
  /// Whether writes are refused.
  public let isReadOnly: Bool

  /// A disk of a size, in bytes.
  public init(byteCount: UInt64, readOnly: Bool = false) {
    size = Atomic(byteCount)
    isReadOnly = readOnly
  }

  /// "null".
  public var description: String { "null" }
  /// The size in bytes.
  public var byteCount: UInt64 { size.load(ordering: .relaxed) }
  /// Forgetting costs nothing: any sector.
  public var discardGranularity: Int? { 512 }
  /// There is nothing that could be got back.
  public var canDiscardSecurely: Bool { true }
  /// Anything goes.
  public var requiredAlignment: Int { 512 }

  /// Never has to wait.
  public func attempt(_ request: inout StorageRequest) -> StorageOutcome { perform(&request) }

  /// Zeroes what is read.
  public func perform(_ request: inout StorageRequest) -> StorageOutcome {
    if request.operation == .read {
      // SAFETY: the request's own vectors, for a read to fill.
      for index in unsafe request.vectors.indices {
        let vector = unsafe request.vectors[index]
        unsafe memset(vector.iov_base, 0, vector.iov_len)
      }
    }
    return .done
  }

  /// Changes only through `resize`.
  public func refreshByteCount() throws(StorageError) -> UInt64 { byteCount }

  /// Any size will do.
  public func resize(to byteCount: UInt64) throws(StorageError) {
    try StorageOptions.check(byteCount, multipleOf: 512, what: "a null disk")
    size.store(byteCount, ordering: .relaxed)
  }
}
