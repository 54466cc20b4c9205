// SPDX-License-Identifier: Apache-2.0
//
// Where NBD meets XbdFront: one queue of a block device as the target of one NBD worker. Nothing is copied here:
// the vectors that NBD receives into and sends from are the queue's own.

import CXen
import NBD
import XbdFront

/// A queue as the NBD service sees it.
///
/// Used by the worker's thread only.
final class FrontTarget: BlockTarget {
  private let queue: BlockQueue
  var onCompletion: (UInt64, TargetOperation, TargetStatus) -> Void = { _, _, _ in } {
    didSet {
      // The closure and not this object: it would be retained and released for each request.
      queue.onCompletion = { [onCompletion] completion in
        onCompletion(
          completion.tag, TargetOperation(rawValue: completion.operation.rawValue),
          Self.status(completion.status))
      }
    }
  }
  var onDescriptorsChange: ([Int32], [Int32]) -> Void {
    get { queue.onDescriptorsChange }
    set { queue.onDescriptorsChange = newValue }
  }

  init(_ queue: BlockQueue) { self.queue = queue }

  deinit {
    // The queue outlives the service: what a dead backend has not answered fails when the device closes.
    queue.onCompletion = { _ in }
  }

  var geometry: TargetGeometry {
    let parameters = queue.parameters
    return TargetGeometry(
      byteCount: parameters.sectorCount << 9, sectorSize: UInt32(parameters.sectorSize),
      preferredSize: UInt32(max(4096, parameters.sectorSize)), isReadOnly: parameters.isReadOnly,
      canFlush: parameters.flush != .none, canTrim: parameters.discard != nil, canFastZero: false)
  }

  func begin(_ request: TargetRequest, tag: UInt64) -> TargetOperation? {
    let command: BlockRequest.Command =
      switch request.command {
      case .read: .read
      case .write: .write
      case .flush: .flush
      case .trim: .discard
      case .writeZeroes: .writeZeroes
      }
    // `keepAllocated` asks for nothing more: zeroes are sent as data, and the range is allocated by that.
    let operation = queue.begin(
      BlockRequest(
        command: command, forceUnitAccess: request.forceUnitAccess, byteOffset: request.byteOffset,
        byteCount: request.byteCount), tag: tag)
    return operation.map { TargetOperation(rawValue: $0.rawValue) }
  }

  func vectors(
    of operation: TargetOperation, from byteOffset: Int, into vectors: UnsafeMutableBufferPointer<iovec>
  ) -> Int {
    queue.vectors(of: OperationID(rawValue: operation.rawValue), from: byteOffset, into: vectors)
  }

  func submit(_ operation: TargetOperation) { queue.submit(OperationID(rawValue: operation.rawValue)) }

  func cancel(_ operation: TargetOperation) { queue.cancel(OperationID(rawValue: operation.rawValue)) }

  func release(_ operation: TargetOperation) { queue.release(OperationID(rawValue: operation.rawValue)) }

  func poll() -> Bool { queue.poll() }

  var hasMore: Bool { queue.hasMore }

  func armWakeup() -> Bool { queue.armWakeup() }

  func keepTime(_ now: UInt64) -> UInt64? { queue.keepTime(now) }

  var descriptors: [Int32] { queue.descriptors }

  private static func status(_ status: OperationStatus) -> TargetStatus {
    switch status {
    case .okay: .okay
    case .ioError: .ioError
    case .notSupported: .notSupported
    case .readOnly: .readOnly
    // The service has checked the range against the geometry; only a resize in between leads here.
    case .outOfRange: .noSpace
    case .shutdown: .shutdown
    }
  }
}
