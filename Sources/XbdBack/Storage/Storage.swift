// SPDX-License-Identifier: Apache-2.0
//
// What a disk's bytes are kept in. A queue first asks for what can be done at once, on its own thread; what would
// have to wait it hands to a worker, which then waits in its place.
//
//   request ──► attempt ──► done ──────────────────────────► response
//                  └──────► would block ──► worker: perform ──► response

public import Glibc

/// One piece of work for a storage.
///
/// The sizes have been checked against the device.
@safe public struct StorageRequest {
  /// What is to be done.
  public enum Operation: UInt8, Sendable {
    /// Fill the vectors.
    case read
    /// Store the vectors.
    case write
    /// Make every write that has been completed durable.
    case flush
    /// Forget a range: it reads as zeroes afterwards, as far as the storage can do that.
    case discard
    /// Forget a range so that it cannot be got back.
    case secureDiscard
  }
  /// What is to be done.
  public var operation: Operation
  /// The first byte of the range; without meaning for a flush.
  public var byteOffset: UInt64
  /// The length of the range in bytes; for a read or write, the sum of the vectors.
  public var byteCount: UInt64
  // SAFETY: memory that whoever made the request keeps until it is done; only storages go there.
  /// A read's or write's memory.
  ///
  /// The storage may change the elements, not the memory of a write.
  public var vectors: UnsafeMutableBufferPointer<iovec>

  /// A piece of work that needs no memory.
  @inlinable
  public init(_ operation: Operation, byteOffset: UInt64, byteCount: UInt64) {
    // SAFETY: none.
    unsafe self.init(
      operation, byteOffset: byteOffset, byteCount: byteCount,
      vectors: UnsafeMutableBufferPointer(start: nil, count: 0))
  }

  /// A piece of work.
  ///
  /// - Parameter vectors: memory that stays there until the work is done; their sum is `byteCount`.
  @inlinable
  public init(
    _ operation: Operation, byteOffset: UInt64, byteCount: UInt64,
    vectors: UnsafeMutableBufferPointer<iovec>
  ) {
    self.operation = operation
    self.byteOffset = byteOffset
    self.byteCount = byteCount
    // SAFETY: kept; the caller's promise.
    unsafe self.vectors = vectors
  }
}

/// What became of a piece of work.
public enum StorageOutcome: Equatable, Sendable {
  /// All of it is done.
  case done
  /// It was not, or not all of it; the `errno`.
  case failed(Int32)
  /// This storage cannot do it at all.
  case notSupported
  /// Nothing is done yet: it would wait. Only from `attempt`.
  case wouldBlock
}

/// What a disk's bytes are kept in.
///
/// All calls may come from any thread at the same time; overlapping requests that are in flight together have no
/// order.
///
/// Its description, for people, is the path or what there is instead.
public protocol Storage: AnyObject, Sendable, CustomStringConvertible {
  /// The size in bytes, a multiple of 512.
  var byteCount: UInt64 { get }
  /// Whether writes are refused.
  var isReadOnly: Bool { get }
  /// The extent that `discard` really frees, in bytes, a power of two; nil when it does nothing.
  var discardGranularity: Int? { get }
  /// Whether `secureDiscard` is possible.
  var canDiscardSecurely: Bool { get }
  /// The least unit that may be read or written, in bytes: 512, or more on some block devices.
  var requiredAlignment: Int { get }

  /// Does what can be done without waiting.
  ///
  /// - Returns: `.wouldBlock` when `perform` has to be called instead, with a request as it was at first.
  func attempt(_ request: inout StorageRequest) -> StorageOutcome

  /// Does the work, however long it takes.
  func perform(_ request: inout StorageRequest) -> StorageOutcome

  /// Looks whether the size was changed from outside.
  ///
  /// - Returns: the size in bytes, which is `byteCount` from now on.
  func refreshByteCount() throws(StorageError) -> UInt64

  /// Makes the disk larger or smaller.
  ///
  /// - Parameter byteCount: the new size, a multiple of 512.
  func resize(to byteCount: UInt64) throws(StorageError)
}

/// Why a storage cannot be had.
public struct StorageError: Error, Equatable, Sendable, CustomStringConvertible {
  /// What kind of failure it is.
  public enum Code: Sendable {
    /// A specification or size that makes no sense.
    case malformed
    /// There is no such file, and no size to create it with.
    case notFound
    /// Another process has it open for writing.
    case inUse
    /// A size that is zero, no multiple of the sector, or past what can be.
    case badSize
    /// Neither a file nor a block device, or it does not do what was asked for.
    case unsuitable
    /// Anything else the system said.
    case system
  }
  /// What kind of failure it is.
  public let code: Code
  /// One sentence for a person.
  public let message: String

  /// An error with its sentence.
  public init(_ code: Code, _ message: String) {
    self.code = code
    self.message = message
  }

  /// The sentence.
  public var description: String { message }
}
