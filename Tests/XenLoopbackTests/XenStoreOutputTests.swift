// SPDX-License-Identifier: Apache-2.0
//
// What the xenstore server keeps for a client that reads slower than it asks.

import CXen
import Glibc
import Platform
import SystemPackage
import TestSupport
import Testing

@testable import XenLoopback

@Suite struct XenStoreOutputTests {
  @Test func aClientThatAlwaysLeavesSomethingUnreadCostsNoMoreThanThat() throws {
    let loop = try HostLoop()
    let server = XenStoreServer(loop: loop)
    let (raw, served) = try makeSocketPair()
    let client = OwnedDescriptor(raw)
    try setNonBlocking(served)
    let connection = try XenStoreConnection(OwnedDescriptor(served), domain: 0, server: server, loop: loop)
    defer { connection.close() }

    func request(_ operation: XenStoreOperation, _ payload: [UInt8]) -> [UInt8] {
      var bytes: [UInt8] = []
      XenStoreHeader(type: operation.rawValue, request: 1, transaction: 0, byteCount: payload.count)
        .append(to: &bytes)
      return bytes + payload
    }
    func send(_ bytes: [UInt8]) -> Bool { Glibc.send(client.raw, bytes, bytes.count, 0) == bytes.count }
    var chunk = [UInt8](repeating: 0, count: 16 + 4000)
    func receive() -> Bool { recv(client.raw, &chunk, chunk.count, Int32(MSG_WAITALL)) == chunk.count }

    try #require(send(request(.write, Array("/n\0".utf8) + [UInt8](repeating: 7, count: 4000))))
    loop.turn(milliseconds: 0)
    try #require(recv(client.raw, &chunk, 16 + 3, Int32(MSG_WAITALL)) == 16 + 3)
    // More than fits into the socket, and from then on one for each that was read: 8 MB in all.
    let read = request(.read, Array("/n\0".utf8))
    try #require(send(Array((0..<150).map { _ in read }.joined())))
    for _ in 0..<20 { loop.turn(milliseconds: 0) }
    var most = 0
    for _ in 0..<2000 {
      try #require(receive())
      try #require(send(read))
      loop.turn(milliseconds: 0)
      most = max(most, connection.keptBytes)
    }
    #expect(most > 0 && most < 1 << 20)
  }
}
