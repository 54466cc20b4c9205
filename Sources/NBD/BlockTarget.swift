// SPDX-License-Identifier: Apache-2.0
//
// What the NBD service asks of whatever stores the bytes. The target owns the memory that payloads land in and
// leave from, so that a target with shared pages needs no copy: a write is received into `vectors`, a read is
// sent from them.
//
//   begin ──► (write: fill vectors) ──► submit ──► poll … completion ──► (read: send vectors) ──► release
//         └─► cancel (a write that was never fully received: nothing changes)

public import CXen

/// A block device as one worker thread of the NBD service uses it.
///
/// Every call comes from that thread.
///
/// No call waits, and none allocates once the first requests have gone through.
public protocol BlockTarget: AnyObject {
  /// What the device is at this moment.
  var geometry: TargetGeometry { get }

  /// Takes on a request.
  ///
  /// The range has been checked against `geometry.byteCount`; it need not be aligned. While no operation is
  /// outstanding a target takes any read or write of up to `Export.maximumPayload` bytes: one that it refuses even
  /// then is answered with ENOMEM, since waiting would never end.
  ///
  /// - Parameters:
  ///   - request: what to do.
  ///   - tag: comes back with the completion; chosen by the caller.
  /// - Returns: the operation, or nil when no resources are free: try again after a later `poll`.
  func begin(_ request: TargetRequest, tag: UInt64) -> TargetOperation?

  /// Writes the memory of a read or write operation, in order, as I/O vectors.
  ///
  /// - Parameters:
  ///   - operation: a read that completed, or a write that was begun and not submitted.
  ///   - byteOffset: where in the operation's bytes to start, for going on after a partial transfer.
  ///   - vectors: where to put them; filled from the front, all of them or fewer.
  /// - Returns: how many were written. When they do not all fit, call again with a greater offset.
  func vectors(
    of operation: TargetOperation, from byteOffset: Int, into vectors: UnsafeMutableBufferPointer<iovec>
  ) -> Int

  /// Lets an operation run: a write whose memory is filled, or any other right after `begin`.
  func submit(_ operation: TargetOperation)

  /// Gives up an operation that was begun and not submitted; nothing on the device changes.
  func cancel(_ operation: TargetOperation)

  /// Gives back the memory of a completed operation.
  ///
  /// May be called from within `onCompletion`: writes and failed operations are given back at once, reads when
  /// they have been sent.
  func release(_ operation: TargetOperation)

  /// Called for each operation that ended, from within `poll` (or `submit`). Set once by the worker.
  var onCompletion: (_ tag: UInt64, _ operation: TargetOperation, _ status: TargetStatus) -> Void { get set }

  /// Moves forward what can move: sends what was submitted, takes in what was answered.
  ///
  /// - Returns: whether anything completed, or a request that `begin` refused may be taken now.
  func poll() -> Bool

  /// Whether the last `poll` came back with more to do, so that others have their turn: call it again soon.
  var hasMore: Bool { get }

  /// Asks to be woken through `descriptors`. Called before the thread sleeps.
  ///
  /// - Returns: false when there is work to do already: call `poll` instead of sleeping.
  func armWakeup() -> Bool

  /// Tells the target the time: before the thread sleeps, after it, and now and then while it does not sleep.
  ///
  /// - Parameter now: the monotonic clock in nanoseconds, as the thread last saw it.
  /// - Returns: when `poll` and this should be called again at the latest; nil when descriptors say it all.
  func keepTime(_ now: UInt64) -> UInt64?

  /// Descriptors that become readable when `poll` should be called; `onDescriptorsChange` tells of others.
  var descriptors: [Int32] { get }

  /// Called from within `poll` when `descriptors` has changed; the removed ones are closed after the call. Set once by
  /// the worker.
  var onDescriptorsChange: (_ removed: [Int32], _ added: [Int32]) -> Void { get set }
}

extension BlockTarget {
  /// A target whose descriptors stay the same has nobody to tell.
  public var onDescriptorsChange: (_ removed: [Int32], _ added: [Int32]) -> Void {
    get { { _, _ in } }
    set {}
  }
}

extension BlockTarget {
  /// A target that does all it can in one `poll`.
  public var hasMore: Bool { false }

  /// Time means nothing to it.
  public func keepTime(_ now: UInt64) -> UInt64? { nil }
}

/// The facts about a device that an NBD client may learn.
public struct TargetGeometry: Equatable, Sendable {
  /// The size in bytes.
  public var byteCount: UInt64
  /// What requests should be aligned to, in bytes, to be cheap: the logical sector, a power of two.
  public var sectorSize: UInt32
  /// The alignment and size at which the device works best, in bytes, a power of two.
  public var preferredSize: UInt32
  /// Writes are refused.
  public var isReadOnly: Bool
  /// `flush` makes earlier writes durable.
  ///
  /// Without it the service offers neither FLUSH nor FUA.
  public var canFlush: Bool
  /// `trim` does something.
  public var canTrim: Bool
  /// Zeroes can be written without sending them through every page (a fast write-zeroes).
  public var canFastZero: Bool

  /// Geometry of a device.
  public init(
    byteCount: UInt64, sectorSize: UInt32, preferredSize: UInt32, isReadOnly: Bool, canFlush: Bool,
    canTrim: Bool, canFastZero: Bool
  ) {
    self.byteCount = byteCount
    self.sectorSize = sectorSize
    self.preferredSize = preferredSize
    self.isReadOnly = isReadOnly
    self.canFlush = canFlush
    self.canTrim = canTrim
    self.canFastZero = canFastZero
  }
}

/// One thing to do, in bytes.
public struct TargetRequest: Sendable {
  /// What to do.
  public enum Command: UInt8, Sendable {
    /// Bring bytes into memory.
    case read
    /// Store bytes from memory.
    case write
    /// Make every write that completed earlier durable; the range is ignored.
    case flush
    /// Forget bytes; what is read afterwards may be anything that was never another's.
    case trim
    /// Make bytes read as zero.
    case writeZeroes
  }
  /// What to do.
  public var command: Command
  /// Durable before it completes (NBD_CMD_FLAG_FUA): for write, trim and writeZeroes.
  public var forceUnitAccess: Bool
  /// The storage should stay allocated (NBD_CMD_FLAG_NO_HOLE): for writeZeroes.
  public var keepAllocated: Bool
  /// The first byte.
  public var byteOffset: UInt64
  /// How many bytes; up to `Export.maximumPayload` for read and write.
  public var byteCount: UInt64

  /// A request.
  public init(
    command: Command, forceUnitAccess: Bool = false, keepAllocated: Bool = false, byteOffset: UInt64,
    byteCount: UInt64
  ) {
    self.command = command
    self.forceUnitAccess = forceUnitAccess
    self.keepAllocated = keepAllocated
    self.byteOffset = byteOffset
    self.byteCount = byteCount
  }
}

/// An operation that the target has taken on; the target decides what the number means.
public struct TargetOperation: RawRepresentable, Hashable, Sendable {
  /// The target's own number.
  public let rawValue: UInt64
  /// An operation by the target's number.
  public init(rawValue: UInt64) { self.rawValue = rawValue }
}

/// How an operation ended.
public enum TargetStatus: UInt8, Sendable {
  /// Done.
  case okay
  /// The device failed (EIO).
  case ioError
  /// The device cannot do this (ENOTSUP).
  case notSupported
  /// The device is read-only (EPERM).
  case readOnly
  /// The device has no room (ENOSPC).
  case noSpace
  /// The device has gone or is going (ESHUTDOWN).
  case shutdown
}
