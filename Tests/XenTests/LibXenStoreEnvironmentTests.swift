// SPDX-License-Identifier: Apache-2.0

import Glibc
import Platform
import Synchronization
import TestSupport
import Testing
import Xen

/// `XENSTORED_PATH`, by which libxenstore is told where to connect, is changed for that moment only.
@Suite struct LibXenStoreEnvironmentTests {
  @Test func whileAConnectionIsMadeNobodyElseIsShownItsPath() throws {
    let directory = try makeTemporaryDirectory("environment")
    let path = "\(directory)/xenstored.sock"
    let listener = try UnixSocket.listen(path: path)
    defer {
      unlink(path)
      rmdir(directory)
    }
    let before = LibXenSystem().identity
    let seen = Seen()
    let reader = try DedicatedThread(name: "reader") {
      let system = LibXenSystem()
      while !seen.isDone.load(ordering: .acquiring) {
        let identity = system.identity
        if identity != before { seen.other.withLock { $0 = identity } }
      }
    }
    for _ in 0..<300 {
      // libxenstore says nothing when it connects, so that nobody has to answer.
      _ = try LibXenStore(socket: path)
      while let connection = try UnixSocket.accept(listener.raw) { close(connection) }
    }
    seen.isDone.store(true, ordering: .releasing)
    reader.join()
    #expect(seen.other.withLock { $0 } == nil)
    #expect(LibXenSystem().identity == before)
  }

  private final class Seen: Sendable {
    let isDone = Atomic<Bool>(false)
    let other = Mutex<String?>(nil)
  }
}
