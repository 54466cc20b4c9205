// SPDX-License-Identifier: Apache-2.0

import TestSupport
import Glibc
import NBDTestSupport
import Platform
import SystemPackage
import Testing

@testable import NBD

/// Sockets, the accepting thread, addresses.
@Suite struct ServerTests {
  /// A directory of its own, removed at the end.
  final class Directory {
    let path: String
    init() throws {
      path = try makeTemporaryDirectory("nbd")
    }
    deinit { rmdir(path) }
  }

  static func makeTargets(_ disk: MemoryDisk, _ count: Int) throws -> sending [any BlockTarget] {
    try (0..<count).map { _ in try MemoryTarget(disk: disk) }
  }

  @Test func severalWorkersServeOneDeviceOnAPrivateUnixSocket() throws {
    let directory = try Directory()
    let path = directory.path + "/socket"
    let disk = MemoryDisk(byteCount: 1 << 20)
    let server = try Server(
      sockets: [try ListeningSocket.unix(path: path)], targets: try Self.makeTargets(disk, 2),
      export: Export())
    var status = stat()
    #expect(lstat(path, &status) == 0 && status.st_mode & 0o777 == 0o600)
    let clients = try (0..<4).map { _ in TestClient(try UnixSocket.connect(path: path)) }
    for (index, client) in clients.enumerated() {
      try client.negotiate(.structured, context: false, export: "")
      #expect(try client.write(UInt64(index * 512), pattern(512, seed: UInt8(index))).error == 0)
    }
    for index in 0..<4 {
      #expect(try clients[3 - index].read(UInt64(index * 512), 512).data == pattern(512, seed: UInt8(index)))
    }
    #expect(server.connectionCount == 4)
    let outcomes = server.stop()
    #expect(outcomes.map(\.finalFlush) == [.okay, .okay])
    for client in clients { try client.waitForClose() }
    #expect(server.statistics()[.connectionsClosed] == 4)
    #expect(disk.flushCount == 2)
    unlink(path)
  }

  /// A queue without a ring of its own works through another's; and a flush may have to be notified again.
  @Test func regression_everyTargetIsLookedAfterUntilTheLastFlushOfAllIsAnswered() throws {
    let directory = try Directory()
    let path = directory.path + "/socket"
    let disks = [MemoryDisk(byteCount: 1 << 20), MemoryDisk(byteCount: 1 << 20)]
    let targets: [any BlockTarget] = try disks.map { try MemoryTarget(disk: $0) }
    // SAFETY: nobody else has them.
    nonisolated(unsafe) let given = targets
    let server = try Server(
      sockets: [try ListeningSocket.unix(path: path)], targets: given, export: Export())
    disks[1].hold()
    let thread = try DedicatedThread(name: "stop") { server.stop() }
    #expect(eventually { disks[0].flushCount == 1 })
    for disk in disks {
      let told = disk.timesTold
      #expect(eventually { disk.timesTold > told + 10 })
    }
    disks[1].letGo()
    thread.join()
    #expect(server.stop().map(\.finalFlush) == [.okay, .okay])
    unlink(path)
  }

  @Test func aTargetThatWantsToKnowTheTimeIsToldWhileNothingElseHappens() throws {
    let directory = try Directory()
    let path = directory.path + "/socket"
    let disk = MemoryDisk(byteCount: 1 << 20)
    disk.wantTime(every: 5_000_000)
    let server = try Server(
      sockets: [try ListeningSocket.unix(path: path)], targets: try Self.makeTargets(disk, 1),
      export: Export())
    #expect(eventually { disk.timesTold > 20 })
    server.stop()
    unlink(path)
  }

  @Test func clientsBeyondTheLimitAreTurnedAwayUntilOneLeaves() throws {
    let directory = try Directory()
    let path = directory.path + "/socket"
    let disk = MemoryDisk(byteCount: 1 << 20)
    let server = try Server(
      sockets: [try ListeningSocket.unix(path: path)], targets: try Self.makeTargets(disk, 2),
      export: Export(),
      maximumConnections: 1)
    do {
      let first = TestClient(try UnixSocket.connect(path: path))
      try first.negotiate(.simple, context: false, export: "")
      try TestClient(try UnixSocket.connect(path: path)).waitForClose()
      #expect(try first.read(0, 1).error == 0)
    }
    #expect(eventually { server.connectionCount == 0 })
    let next = TestClient(try UnixSocket.connect(path: path))
    try next.negotiate(.simple, context: false, export: "")
    #expect(server.statistics()[.connectionsRefused] == 1)
    server.stop()
    unlink(path)
  }

  @Test func aTCPServerSaysWhereItListens() throws {
    let socket = try ListeningSocket.tcp(port: 0)
    guard case .tcp(let host, let port) = socket.address else {
      Issue.record("no TCP address")
      return
    }
    #expect(host == "127.0.0.1" && port != 0)
    #expect(socket.address.uri(export: "a b") == "nbd://127.0.0.1:\(port)/a%20b")
    let disk = MemoryDisk(byteCount: 1 << 20)
    let server = try Server(sockets: [socket], targets: try Self.makeTargets(disk, 1), export: Export())
    let raw = Glibc.socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
    var address = sockaddr_in()
    address.sin_family = sa_family_t(AF_INET)
    address.sin_port = port.bigEndian
    address.sin_addr.s_addr = UInt32(0x7f00_0001).bigEndian
    let connected = withUnsafePointer(to: &address) {
      $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        connect(raw, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
      }
    }
    #expect(connected == 0)
    let client = TestClient(OwnedDescriptor(raw))
    try client.negotiate(.extended, context: true, export: "")
    #expect(try client.write(5, pattern(300_000)).error == 0)
    #expect(try client.read(5, 300_000).data == pattern(300_000))
    server.stop()
  }

  @Test func anInheritedSocketIsServedAndAConnectedOneRefused() throws {
    let directory = try Directory()
    let path = directory.path + "/socket"
    let listening = try UnixSocket.listen(path: path)
    let socket = try ListeningSocket.inherited(listening)
    #expect(socket.address == .unix(path))
    let (raw, other) = try makeSocketPair()
    let end = OwnedDescriptor(raw)
    close(other)
    #expect(throws: ListeningError.self) { try ListeningSocket.inherited(try end.duplicate()) }
    unlink(path)
  }

  @Test func addressesInUseAndBadPathsAreExplained() throws {
    let directory = try Directory()
    let path = directory.path + "/socket"
    let live = try ListeningSocket.unix(path: path)
    #expect(
      throws: ListeningError("a server answers at the socket \(path) already; stop it or choose another path")
    ) {
      try ListeningSocket.unix(path: path)
    }
    #expect(throws: ListeningError.self) {
      try ListeningSocket.unix(path: String(repeating: "x", count: 200))
    }
    #expect(throws: ListeningError.self) { try ListeningSocket.unix(path: "/nonexistent/socket") }
    #expect(live.address.uri(export: "") == "nbd+unix:///?socket=\(path)")
  }

  @Test func urisEncodeWhatHasToBeEncoded() {
    let unix = ListeningSocket.Address.unix("/tmp/a b?&#%/é")
    #expect(unix.uri(export: "x/y z") == "nbd+unix:///x/y%20z?socket=/tmp/a%20b%3F%26%23%25/%C3%A9")
    #expect(ListeningSocket.Address.tcp(host: "::1", port: 10809).uri(export: "") == "nbd://[::1]:10809/")
    #expect(ListeningSocket.Address.other.uri(export: "") == nil)
  }

  @Test func socketActivationBelievesOnlyWhatIsMeantForThisProcess() throws {
    func names(_ variables: [String: String]) throws(SocketActivationError) -> [String] {
      try SocketActivation.names(in: { variables[$0] }, processID: 42)
    }
    #expect(try names([:]) == [])
    #expect(try names(["LISTEN_PID": "41", "LISTEN_FDS": "1"]) == [])
    #expect(try names(["LISTEN_PID": "x", "LISTEN_FDS": "1"]) == [])
    #expect(try names(["LISTEN_FDS": "1"]) == [])
    #expect(try names(["LISTEN_PID": "42", "LISTEN_FDS": "2"]) == ["unknown", "unknown"])
    #expect(
      try names(["LISTEN_PID": "42", "LISTEN_FDS": "3", "LISTEN_FDNAMES": "a::c"]) == ["a", "unknown", "c"])
    for wrong in ["", "x", "-1", "99999"] {
      #expect(throws: SocketActivationError.malformedCount(wrong)) {
        try names(["LISTEN_PID": "42", "LISTEN_FDS": wrong])
      }
    }
  }
}
