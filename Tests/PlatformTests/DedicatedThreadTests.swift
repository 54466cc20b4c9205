// SPDX-License-Identifier: Apache-2.0

import CXen
import Glibc
import Platform
import Synchronization
import SystemPackage
import Testing

@Suite struct DedicatedThreadTests {
  @Test func joiningWaitsForTheClosureAndShowsItsWrites() throws {
    let result = Mutex(0)
    let holder = Holder(result)
    let thread = try DedicatedThread(name: "worker") {
      usleep(50_000)
      holder.set(42)
    }
    thread.join()
    #expect(holder.get() == 42)
    // A second time returns at once.
    thread.join()
  }

  @Test(arguments: [("queue-0", "queue-0"), ("a name that is much too long", "a name that is "), ("", "")])
  func aThreadHasItsNameCutAt15Bytes(name: String, shown: String) throws {
    let seen = TextHolder()
    let thread = try DedicatedThread(name: name) {
      seen.set(threadName())
    }
    thread.join()
    #expect(seen.get() == shown)
  }

  @Test func aThreadIsAThreadOfItsOwn() throws {
    let holder = Holder(Mutex(0))
    let mine = Int(cxen_gettid())
    let thread = try DedicatedThread(name: "other") { holder.set(Int(cxen_gettid())) }
    thread.join()
    #expect(holder.get() != mine)
    #expect(holder.get() != 0)
  }

  @Test func aThreadNobodyJoinsEndsByItself() throws {
    let counter = Shared(try EventCounter())
    let loop = try EventLoop()
    try loop.add(counter.value.fileDescriptor, .readable, token: 0)
    do {
      _ = try DedicatedThread(name: "detached") {
        usleep(10_000)
        counter.value.signal()
      }
    }
    #expect(loop.waitPatiently() == 1)
  }

  @Test func whatTheClosureHoldsIsLetGoOfAtItsEnd() throws {
    let counter = Shared(try EventCounter())
    let thread = try DedicatedThread(name: "holder", closure(holding: SignalAtEnd(counter)))
    thread.join()
    let signalled = counter.value.drain()
    #expect(signalled)
  }

  @Test func aStackThatCannotBeHadIsAnError() {
    #expect(throws: Errno.self) { _ = try DedicatedThread(name: "huge", stackSize: 1 << 46) {} }
  }
}

private func closure(holding token: SignalAtEnd) -> @Sendable () -> Void {
  { withExtendedLifetime(token) {} }
}

private func threadName() -> String {
  guard let file = fopen("/proc/self/task/\(cxen_gettid())/comm", "r") else { return "?" }
  defer { fclose(file) }
  var bytes = [UInt8](repeating: 0, count: 64)
  let count = fread(&bytes, 1, bytes.count, file)
  // The kernel ends the name with a newline.
  return String(decoding: bytes.prefix(max(0, count - 1)), as: UTF8.self)
}

private final class Shared: Sendable {
  let value: EventCounter
  init(_ value: consuming EventCounter) { self.value = value }
}

private final class SignalAtEnd: Sendable {
  let counter: Shared
  init(_ counter: Shared) { self.counter = counter }
  deinit { counter.value.signal() }
}

private final class Holder: Sendable {
  private let value: Mutex<Int>
  init(_ value: consuming Mutex<Int>) { self.value = value }
  func set(_ new: Int) { value.withLock { $0 = new } }
  func get() -> Int { value.withLock { $0 } }
}

private final class TextHolder: Sendable {
  private let value = Mutex("")
  func set(_ new: String) { value.withLock { $0 = new } }
  func get() -> String { value.withLock { $0 } }
}
