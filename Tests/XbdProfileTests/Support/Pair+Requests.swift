// SPDX-License-Identifier: Apache-2.0
//
// One request at a time, or several: begun, filled, waited for, read.

import Glibc
import TestSupport
import XbdFront

extension Pair {
  /// Begins a request, with data for a write.
  ///
  /// - Returns: its tag.
  func start(
    _ command: BlockRequest.Command, _ offset: Int = 0, _ count: Int = 0, data: [UInt8] = [],
    fua: Bool = false,
    queue index: Int = 0
  ) throws -> UInt64 {
    guard let device else { throw PairFailure(description: "not connected") }
    let queue = device.queues[index]
    let tag = ledger.takeTag()
    let count = command == .write ? data.count : count
    let request = BlockRequest(
      command: command, forceUnitAccess: fua, byteOffset: UInt64(offset), byteCount: UInt64(count))
    var operation: OperationID?
    guard
      turn(until: {
        operation = queue.begin(request, tag: tag)
        return operation != nil
      }), let operation
    else {
      ledger.forget(tag)
      throw PairFailure(description: "\(profile): no room for a request of \(count) bytes")
    }
    if command == .write { copy(operation, queue, data, nil) }
    operations[tag] = (queue, operation)
    queue.submit(operation)
    return tag
  }

  /// Waits for a request.
  ///
  /// - Parameter count: the bytes of a read.
  func finish(_ tag: UInt64, reading count: Int = 0) throws -> (OperationStatus, [UInt8]) {
    guard turn(until: { ledger.ended[tag] != nil }), let status = ledger.take(tag),
      let (queue, operation) = operations.removeValue(forKey: tag)
    else { throw PairFailure(description: "\(profile): no answer; \(standing)") }
    var bytes: [UInt8] = []
    if count > 0, status == .okay {
      bytes = [UInt8](repeating: 0, count: count)
      bytes.withUnsafeMutableBytes { copy(operation, queue, [], $0) }
    }
    queue.release(operation)
    return (status, bytes)
  }

  /// Does a request and waits for it.
  func perform(
    _ command: BlockRequest.Command, _ offset: Int = 0, _ count: Int = 0, data: [UInt8] = [],
    fua: Bool = false,
    queue: Int = 0
  ) throws -> OperationStatus {
    try finish(
      start(command, offset, count, data: data, fua: fua, queue: queue)
    ).0
  }

  func read(_ offset: Int, _ count: Int, queue: Int = 0) throws -> [UInt8] {
    let (status, bytes) = try finish(start(.read, offset, count, queue: queue), reading: count)
    guard status == .okay else { throw PairFailure(description: "\(profile): a read ended with \(status)") }
    return bytes
  }

  func copy(
    _ operation: OperationID, _ queue: BlockQueue, _ source: [UInt8],
    _ destination: UnsafeMutableRawBufferPointer?
  ) {
    let total = destination?.count ?? source.count
    var done = 0
    withUnsafeTemporaryAllocation(of: iovec.self, capacity: 16) { vectors in
      while done < total {
        let count = queue.vectors(of: operation, from: done, into: vectors)
        if count == 0 { return }
        for vector in vectors.prefix(count) {
          guard let base = vector.iov_base else { return }
          if let destination, let start = destination.baseAddress {
            memcpy(start + done, base, vector.iov_len)
          } else {
            source.withUnsafeBytes { bytes in
              if let start = bytes.baseAddress { memcpy(base, start + done, vector.iov_len) }
            }
          }
          done += vector.iov_len
        }
      }
    }
  }
}

/// Bytes that differ from place to place: the same random sector over and over, each with its number in it.
///
/// A loop over all of the bytes would take most of these tests' time in a debug build.
func pattern(_ count: Int, _ seed: UInt64) -> [UInt8] {
  var generator = SeededGenerator(seed: seed)
  var sector: [UInt64] = (0..<64).map { _ in generator.next() }
  let sectors = (count + 511) / 512
  return [UInt8](unsafeUninitializedCapacity: sectors * 512) { buffer, length in
    for index in 0..<sectors {
      sector[index % 64] &+= UInt64(index) &* 0x9E37_79B9_7F4A_7C15 | 1
      sector.withUnsafeBytes { bytes in
        if let base = bytes.baseAddress, let start = buffer.baseAddress {
          memcpy(start + index * 512, base, 512)
        }
      }
    }
    length = count
  }
}
