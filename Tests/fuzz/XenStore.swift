// SPDX-License-Identifier: Apache-2.0
//
// Clients of the loopback's xenstore that send anything: two guests, and the control domain if the first byte says
// so. A guest's requests are put together from an instruction, or are the input's bytes as they are.

import CXen
import Glibc
import Platform
import SystemPackage

@testable import XenLoopback

func xenStore(_ input: inout FuzzInput) {
  guard let fuzzer = try? XenStoreFuzzer(withControlDomain: input.flag()) else {
    violated("there is room for a xenstore")
  }
  var steps = 0
  while !input.isAtEnd, steps < 200 {
    steps += 1
    fuzzer.step(&input)
  }
  fuzzer.end()
}

/// What only the control domain may read.
private let secret = Array("TOP-SECRET".utf8)

private let paths = [
  "/", "/a", "/a/b", "/a/b/c", "/local/domain/1", "/local/domain/1/data", "data", "data/x", "/secret",
  "/secret/inner", "/shared", "/shared/x", "@releaseDomain", "@introduceDomain", "/local/domain/2/data",
  "/a//b",
]

private final class Client {
  let descriptor: Int32
  let domain: UInt16
  var asked = 0
  var input: [UInt8] = []
  /// Set once raw bytes were sent: we no longer know where requests end.
  var isRaw = false
  var isOpen = true

  init(_ domain: UInt16, _ server: XenStoreServer) throws(Errno) {
    var pair: [Int32] = [-1, -1]
    guard socketpair(AF_UNIX, streamSocket, 0, &pair) == 0 else {
      throw .noMemory
    }
    descriptor = pair[0]
    self.domain = domain
    server.accepted(OwnedDescriptor(pair[1]), for: domain)
  }

  deinit { _ = Glibc.close(descriptor) }
}

private final class XenStoreFuzzer {
  private let loop: HostLoop
  private let server: XenStoreServer
  private let clients: [Client]
  private let mayReadSecret: Bool

  init(withControlDomain: Bool) throws(Errno) {
    loop = try HostLoop()
    server = XenStoreServer(loop: loop)
    server.introduce(1)
    server.introduce(2)
    mayReadSecret = withControlDomain
    for (text, rights) in [
      ("/secret", [XenStoreRight(domain: 0, read: false, write: false)]),
      ("/shared", [XenStoreRight(domain: 0, read: true, write: true)]),
      ("/local/domain/1", [XenStoreRight(domain: 1, read: false, write: false)]),
      ("/local/domain/2", [XenStoreRight(domain: 2, read: false, write: false)]),
    ] {
      if let path = try? XenStorePath(absolute: text) {
        server.tree.create(path, value: secret, permissions: rights)
      }
    }
    if let path = try? XenStorePath(absolute: "/shared") { server.tree.setValue(path, []) }
    for number in 1...2 as ClosedRange<UInt16> {
      if let path = try? XenStorePath(absolute: "/local/domain/\(number)") { server.tree.setValue(path, []) }
    }
    var clients = [try Client(1, server), try Client(1, server), try Client(2, server)]
    if withControlDomain { clients.append(try Client(0, server)) }
    self.clients = clients
  }

  func step(_ input: inout FuzzInput) {
    let what = input.byte()
    let client = clients[Int(what & 3) % clients.count]
    var bytes: [UInt8]
    if what & 0x80 != 0, what & 0x40 != 0 {
      bytes = input.take(input.below(64))
      client.isRaw = true
    } else {
      var payload: [UInt8] = []
      let type = UInt32(what >> 2 & 31) % 24
      let transaction = UInt32(input.below(4))
      // Parts of a payload: a path of ours, text, or nothing, each with its NUL.
      for _ in 0..<input.below(4) {
        let part = input.byte()
        if part & 0x80 == 0 {
          payload += Array(paths[Int(part) % paths.count].utf8)
        } else {
          payload += input.take(Int(part & 0x1F))
        }
        payload.append(0)
      }
      if type == XenStoreOperation.write.rawValue {
        let count = input.byte()
        payload += Array(repeating: count, count: Int(count) * (count & 1 == 0 ? 12 : 1))
      }
      if what & 0x80 != 0 { payload += input.take(3) }
      payload = Array(payload.prefix(XenStoreLimits.payloadBytes))
      bytes = []
      XenStoreHeader(type: type, request: UInt32(what), transaction: transaction, byteCount: payload.count)
        .append(to: &bytes)
      bytes += payload
      if client.isOpen { client.asked += 1 }
    }
    _ = bytes.withUnsafeBytes { Glibc.write(client.descriptor, $0.baseAddress, $0.count) }
    for _ in 0..<4 { loop.turn(milliseconds: 0) }
    for client in clients { receive(client) }
  }

  func end() {
    check()
    server.stop()
  }

  /// Takes what came and takes it apart: every message is whole and small, requests are answered one for one.
  private func receive(_ client: Client) {
    withUnsafeTemporaryAllocation(byteCount: 16 << 10, alignment: 16) { buffer in
      while true {
        let got = Glibc.read(client.descriptor, buffer.baseAddress, buffer.count)
        if got == 0 { client.isOpen = false }
        if got <= 0 { break }
        client.input.append(contentsOf: buffer[..<got])
      }
    }
    var rest = client.input[...]
    while rest.count >= XenStoreLimits.headerBytes {
      let header = XenStoreHeader(Array(rest.prefix(XenStoreLimits.headerBytes)))
      guard header.byteCount <= XenStoreLimits.payloadBytes else {
        violated("a message has a bounded length")
      }
      let end = XenStoreLimits.headerBytes + Int(header.byteCount)
      guard rest.count >= end else { break }
      let payload = rest.dropFirst(XenStoreLimits.headerBytes).prefix(Int(header.byteCount))
      if header.type != XenStoreOperation.watchEvent.rawValue {
        client.asked -= 1
        guard client.isRaw || client.asked >= 0 else { violated("a request is answered once") }
        let reply = Array(payload)
        if header.type == XenStoreOperation.read.rawValue, !mayReadSecret, client.domain != 0, reply == secret
        {
          violated("a guest does not read what is not its own")
        }
      }
      rest = rest.dropFirst(end)
    }
    client.input = Array(rest)
    if !client.isRaw, client.isOpen, client.asked != 0 {
      violated("a request is answered: \(client.asked) are not")
    }
  }

  /// The tree's own books are right, and nobody owns more than may be.
  private func check() {
    var owned: [UInt16: Int] = [:]
    server.tree.root.visit { _, node in owned[node.owner, default: 0] += 1 }
    for (domain, count) in server.tree.owned where count != owned[domain] ?? 0 {
      violated("nodes are counted: domain \(domain) owns \(owned[domain] ?? 0), not \(count)")
    }
    for (domain, count) in owned where domain != 0 && count > XenStoreLimits.guestNodes && !mayReadSecret {
      violated("a guest's nodes are bounded: domain \(domain) has \(count)")
    }
  }
}
