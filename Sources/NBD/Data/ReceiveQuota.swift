// SPDX-License-Identifier: Apache-2.0
//
// How much of what a client has sent is received at a time.

/// The most bytes that a receive may put into a connection's buffer.
struct ReceiveQuota {
  /// One header only while large writes come, so that their payloads are not swallowed into the buffer and copied.
  private var ceiling = Int.max
  /// Bytes of a request with its payload: the largest of late.
  private var requestBytes = WorkerLoop.bufferSize

  /// What may be received now.
  ///
  /// - Parameter requests: how many requests that should be, by the size of those that came last; 1 to 4096.
  /// - Returns: bytes, at least a header's.
  @inline(__always)
  func bytes(requests: Int) -> Int { min(ceiling, requestBytes &* requests) }

  /// A request of so many bytes was taken out of the buffer, its payload with it.
  @inline(__always)
  mutating func took(_ bytes: Int) {
    requestBytes = max(bytes, requestBytes &- requestBytes / 16)
    if ceiling < WorkerLoop.bufferSize { ceiling <<= 2 }
  }

  /// A request of so many bytes is not complete yet: what is missing is to come at once.
  mutating func needs(_ bytes: Int) {
    requestBytes = max(requestBytes, bytes)
    ceiling = max(ceiling, bytes)
  }

  /// A payload is received straight into the target's memory; another such request may follow, with a header of so many bytes.
  mutating func expectsHeader(_ bytes: Int) { ceiling = bytes }

  /// What comes is dropped.
  mutating func lift() { self = ReceiveQuota() }
}
