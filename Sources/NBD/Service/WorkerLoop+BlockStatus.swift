// SPDX-License-Identifier: Apache-2.0
//
// What is known of the device's blocks: all of them are data.

internal import Platform

extension WorkerLoop {
  /// How much one extent of block status covers: all of the device is data.
  func extent(_ header: RequestHeader, isOne: Bool, _ style: ReplyStyle) -> UInt64 {
    let rest = isOne ? header.length : state.pointee.geometry.byteCount &- header.byteOffset
    if style == .extended { return rest }
    // 32 bits, and a multiple of every block size.
    let longest: UInt64 = 0xffff_0000
    return min(rest, longest)
  }

  /// Reads the payload form of block status: an effect length and the contexts wanted.
  func blockStatusPayload(
    _ connection: Entry<Connection>, _ header: inout RequestHeader, _ size: Int, _ payload: Int
  ) -> RequestVerdict {
    guard payload == 12 else { return .answer(NBDError.invalid) }
    let (length, context) = connection.pointee.buffer.withBytes(size, count: 12) { bytes in
      (bytes.bigEndian(0, as: UInt64.self), bytes.bigEndian(8, as: UInt32.self))
    }
    // One context exists, so exactly one identifier can be right: more would repeat it.
    guard context == NBDMetaContext.allocationID else { return .answer(NBDError.invalid) }
    header.length = length
    header.flags &= ~NBDCommandFlag.payloadLength
    return header.verdict(state.pointee.geometry, connection.pointee.session)
  }
}
