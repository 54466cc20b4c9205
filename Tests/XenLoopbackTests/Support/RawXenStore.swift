// SPDX-License-Identifier: Apache-2.0
//
// A xenstore client that sends what it is told to, right or wrong.

import CXen
import Glibc
import Platform
import Xen

@testable import XenLoopback

/// A connection to a xenstore socket, byte by byte.
final class RawXenStore {
  private let socket: OwnedDescriptor

  struct Message: Equatable {
    var type: UInt32
    var request: UInt32
    var transaction: UInt32
    var payload: [UInt8]

    var text: String { String(decoding: payload, as: UTF8.self) }
    /// The errno's name, if this is an error.
    var failure: String? { type == 16 ? String(text.dropLast()) : nil }
  }

  init(_ path: String) throws {
    socket = try UnixSocket.connect(path: path)
    // A server that does not answer must not hang the tests.
    var limit = timeval(tv_sec: 20, tv_usec: 0)
    setsockopt(socket.raw, SOL_SOCKET, SO_RCVTIMEO, &limit, socklen_t(MemoryLayout<timeval>.size))
  }

  /// Sends bytes as they are.
  ///
  /// - Returns: whether the server took them.
  @discardableResult
  func send(_ bytes: [UInt8]) -> Bool {
    Glibc.send(socket.raw, bytes, bytes.count, Int32(MSG_NOSIGNAL)) == bytes.count
  }

  /// Reads exactly so many bytes; nil when the connection ends before.
  func receive(_ count: Int) -> [UInt8]? {
    var all: [UInt8] = []
    while all.count < count {
      var chunk = [UInt8](repeating: 0, count: count - all.count)
      let got = recv(socket.raw, &chunk, chunk.count, 0)
      guard got > 0 else { return nil }
      all.append(contentsOf: chunk[..<got])
    }
    return all
  }

  /// The next message of any kind.
  func next() -> Message? {
    guard let raw = receive(16) else { return nil }
    let header = XenStoreHeader(raw)
    guard let payload = receive(Int(header.byteCount)) else { return nil }
    return Message(
      type: header.type, request: header.request, transaction: header.transaction, payload: payload)
  }

  /// Sends a request and gives the reply to it, passing over watch events.
  func call(_ operation: XenStoreOperation, _ payload: String, transaction: UInt32 = 0) -> Message? {
    var bytes: [UInt8] = []
    XenStoreHeader(
      type: operation.rawValue, request: 77, transaction: transaction, byteCount: payload.utf8.count
    )
    .append(to: &bytes)
    guard send(bytes + Array(payload.utf8)) else { return nil }
    while let message = next() {
      if message.type != XenStoreOperation.watchEvent.rawValue { return message }
    }
    return nil
  }
}
