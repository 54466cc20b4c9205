// SPDX-License-Identifier: Apache-2.0

import Platform
import Testing

@Suite struct EventCounterTests {
  @Test func aFreshCounterIsNotSignalled() throws {
    let counter = try EventCounter()
    let signalled = counter.drain()
    #expect(!signalled)
  }

  @Test func manySignalsAreDrainedAtOnce() throws {
    let counter = try EventCounter()
    for _ in 0..<1000 { counter.signal() }
    let first = counter.drain()
    let second = counter.drain()
    #expect(first)
    #expect(!second)
  }

  @Test func aSignalFromAnotherThreadEndsAWait() throws {
    let shared = try SharedCounter()
    let loop = try EventLoop()
    try loop.add(shared.counter.fileDescriptor, .readable, token: 7)
    let thread = try DedicatedThread(name: "signaller") { shared.counter.signal() }
    let count = loop.waitPatiently()
    #expect(count == 1)
    #expect(loop.event(0).token == 7)
    thread.join()
  }

  @Test func anAdoptedDescriptorIsTheSameCounter() throws {
    let counter = try EventCounter()
    let twin = EventCounter(adopting: try duplicate(counter.fileDescriptor))
    twin.signal()
    let signalled = counter.drain()
    #expect(signalled)
  }
}

private final class SharedCounter: Sendable {
  let counter: EventCounter
  init() throws { counter = try EventCounter() }
}
