// SPDX-License-Identifier: Apache-2.0
//
// Bytes of the two protocols that a host speaks, control and xenstore: numbers in them, and messages with descriptors
// beside them on a socket.

internal import CXen

extension [UInt8] {
  /// The 32-bit number at a place, in the machine's own order, which is little-endian wherever Xen runs.
  ///
  /// - Parameter index: 0 for the first four bytes; they have to be there.
  func number(_ index: Int) -> UInt32 {
    var number: UInt32 = 0
    for byte in self[(index * 4)..<(index * 4 + 4)].reversed() { number = number << 8 | UInt32(byte) }
    return number
  }

  /// Adds a 32-bit number, as `number` reads it.
  mutating func append(number: UInt32) {
    for shift in stride(from: 0, to: 32, by: 8) { append(UInt8(truncatingIfNeeded: number >> UInt32(shift))) }
  }
}

/// Sends bytes and descriptors in one message.
///
/// - Returns: how many bytes went; -1 with an errno otherwise.
func sendMessage(_ bytes: [UInt8], _ descriptors: [Int32], on socket: Int32) -> Int {
  // SAFETY: two arrays with their own lengths, read during the call.
  unsafe cxen_send_with_fds(socket, bytes, bytes.count, descriptors, descriptors.count)
}

/// Receives what is left of a control message, and up to two descriptors that came with it.
///
/// - Parameters:
///   - input: the message so far, shorter than `ControlMessage.byteCount`; the bytes are added.
///   - descriptors: the descriptors are added, and are the caller's to close.
///   - limit: how many descriptors are taken, at most two; what is more than that is closed.
/// - Returns: how many bytes came; 0 at the end, -1 with an errno otherwise.
func receiveMessage(
  _ input: inout [UInt8], _ descriptors: inout [Int32], limit: Int, on socket: Int32
) -> Int {
  var numbers: (Int32, Int32) = (-1, -1)
  var count = min(limit, 2)
  var bytes: (UInt64, UInt64, UInt64, UInt64) = (0, 0, 0, 0)
  let wanted = min(ControlMessage.byteCount - input.count, 32)
  // SAFETY: `wanted` bytes are no more than the 32 there are, `count` descriptors no more than two; both are locals.
  let got = unsafe withUnsafeMutableBytes(of: &bytes) { buffer in
    unsafe withUnsafeMutableBytes(of: &numbers) { numbers in
      unsafe cxen_receive_with_fds(
        socket, buffer.baseAddress, wanted, numbers.assumingMemoryBound(to: Int32.self).baseAddress, &count)
    }
  }
  if got > 0 {
    // SAFETY: the call filled so many bytes of the local.
    unsafe withUnsafeBytes(of: bytes) { unsafe input.append(contentsOf: $0[..<got]) }
  }
  if count > 0 { descriptors.append(numbers.0) }
  if count > 1 { descriptors.append(numbers.1) }
  return got
}
