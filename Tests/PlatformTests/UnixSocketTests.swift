// SPDX-License-Identifier: Apache-2.0

import CXen
import Glibc
import Platform
import Synchronization
import SystemPackage
import Testing

@Suite struct UnixSocketTests {
  @Test func aConnectionIsAcceptedAndCarriesBytes() throws {
    let directory = try TemporaryDirectory()
    let listener = try UnixSocket.listen(path: directory.file("s"))
    #expect(try UnixSocket.accept(listener.raw) == nil)
    let client = try UnixSocket.connect(path: directory.file("s"))
    let server = OwnedDescriptor(try #require(try UnixSocket.accept(listener.raw)))
    #expect(fcntl(server.raw, F_GETFD) & FD_CLOEXEC != 0)
    #expect(cxen_get_status_flags(server.raw) & cxen_O_NONBLOCK != 0)
    var byte: UInt8 = 42
    #expect(write(client.raw, &byte, 1) == 1)
    byte = 0
    let loop = try EventLoop()
    try loop.add(server.raw, .readable, token: 0)
    #expect(loop.waitPatiently() == 1)
    #expect(read(server.raw, &byte, 1) == 1)
    #expect(byte == 42)
  }

  @Test func aLiveServerIsNotTrampledOn() throws {
    let directory = try TemporaryDirectory()
    let listener = try UnixSocket.listen(path: directory.file("s"))
    #expect(throws: ListenError.inUse) { _ = try UnixSocket.listen(path: directory.file("s")) }
    // It still answers.
    _ = try UnixSocket.connect(path: directory.file("s"))
    #expect(isOpen(listener.raw))
  }

  @Test func aLiveServerTooBusyToAcceptIsNotTrampledOnEither() throws {
    let directory = try TemporaryDirectory()
    let path = directory.file("s")
    let listener = try UnixSocket.listen(path: path)
    // Shrink the backlog and fill it: a blocking connect would wait for ever now.
    try retrying { Glibc.listen(listener.raw, 0) }
    let waiting = try UnixSocket.connect(path: path)
    #expect(throws: ListenError.inUse) { _ = try UnixSocket.listen(path: path) }
    #expect(isOpen(waiting.raw))
  }

  @Test func theSocketOfADeadServerIsReplaced() throws {
    let directory = try TemporaryDirectory()
    do { _ = try UnixSocket.listen(path: directory.file("s")) }
    #expect(access(directory.file("s"), F_OK) == 0)
    #expect(throws: ListenError.system(.connectionRefused)) {
      _ = try UnixSocket.connect(path: directory.file("s"))
    }
    let listener = try UnixSocket.listen(path: directory.file("s"))
    _ = try UnixSocket.connect(path: directory.file("s"))
    #expect(isOpen(listener.raw))
  }

  @Test func aFileThatIsNotASocketIsLeftAlone() throws {
    let directory = try TemporaryDirectory()
    let path = directory.file("data")
    let file = OwnedDescriptor(try retrying { creat(path, 0o600) })
    #expect(write(file.raw, "precious", 8) == 8)
    #expect(throws: ListenError.notASocket) { _ = try UnixSocket.listen(path: path) }
    var status = stat()
    #expect(stat(path, &status) == 0)
    #expect(status.st_size == 8)
    #expect(throws: ListenError.notASocket) { _ = try UnixSocket.listen(path: directory.path) }
  }

  @Test func theFileIsPrivateFromItsFirstMoment() throws {
    let directory = try TemporaryDirectory()
    let path = directory.file("s")
    let over = Flag()
    let wrong = Flag()
    let seen = Flag()
    let watcher = try DedicatedThread(name: "watcher") {
      var status = stat()
      while !over.isSet {
        if stat(path, &status) == 0 {
          seen.set()
          if status.st_mode & 0o777 != 0o600 { wrong.set() }
        }
      }
    }
    // Until the watcher has had its chance, and a few hundred times more.
    var rounds = 0
    while rounds < 300 || (!seen.isSet && rounds < 200_000) {
      _ = try UnixSocket.listen(path: path)
      unlink(path)
      rounds += 1
    }
    over.set()
    watcher.join()
    #expect(seen.isSet)
    #expect(!wrong.isSet)
  }

  @Test func aPathIsAtMost107Bytes() throws {
    let directory = try TemporaryDirectory()
    let room = 107 - directory.path.utf8.count - 1
    let longest = directory.file(String(repeating: "x", count: room))
    let listener = try UnixSocket.listen(path: longest)
    _ = try UnixSocket.connect(path: longest)
    #expect(isOpen(listener.raw))
    #expect(throws: ListenError.pathTooLong) { _ = try UnixSocket.listen(path: longest + "x") }
    #expect(throws: ListenError.pathTooLong) { _ = try UnixSocket.connect(path: longest + "x") }
  }

  // It would be an abstract name, which anybody may connect to.
  @Test func noPathIsNoAddress() {
    #expect(throws: ListenError.noPath) { _ = try UnixSocket.listen(path: "") }
    #expect(throws: ListenError.noPath) { _ = try UnixSocket.connect(path: "") }
  }

  @Test func aDirectoryThatIsNotThereIsAnError() throws {
    let directory = try TemporaryDirectory()
    #expect(throws: ListenError.system(.noSuchFileOrDirectory)) {
      _ = try UnixSocket.listen(path: directory.file("missing/s"))
    }
    #expect(throws: ListenError.system(.noSuchFileOrDirectory)) {
      _ = try UnixSocket.connect(path: directory.file("s"))
    }
  }
}

private final class Flag: Sendable {
  private let value = Atomic<Bool>(false)
  var isSet: Bool { value.load(ordering: .acquiring) }
  func set() { value.store(true, ordering: .releasing) }
}
