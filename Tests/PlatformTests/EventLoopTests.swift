// SPDX-License-Identifier: Apache-2.0

import CXen
import Glibc
import Platform
import SystemPackage
import Testing

@Suite struct EventLoopTests {
  @Test func nothingReadyIsNoEvent() throws {
    let counter = try EventCounter()
    let loop = try EventLoop()
    try loop.add(counter.fileDescriptor, .readable, token: 1)
    #expect(loop.wait(milliseconds: 0) == 0)
    #expect(loop.wait(milliseconds: 1) == 0)
  }

  @Test func tokensComeBackWhole() throws {
    let first = try EventCounter()
    let second = try EventCounter()
    let loop = try EventLoop()
    try loop.add(first.fileDescriptor, .readable, token: UInt64.max)
    try loop.add(second.fileDescriptor, .readable, token: 0x0123_4567_89AB_CDEF)
    first.signal()
    second.signal()
    let count = loop.waitPatiently()
    let tokens = Set((0..<count).map { loop.event($0).token })
    #expect(tokens == [UInt64.max, 0x0123_4567_89AB_CDEF])
  }

  @Test func aReadyDescriptorIsReportedUntilItIsServed() throws {
    let counter = try EventCounter()
    let loop = try EventLoop()
    try loop.add(counter.fileDescriptor, .readable, token: 1)
    counter.signal()
    #expect(loop.wait(milliseconds: 0) == 1)
    #expect(loop.wait(milliseconds: 0) == 1)
    counter.drain()
    #expect(loop.wait(milliseconds: 0) == 0)
  }

  @Test func moreReadyDescriptorsThanTheBufferHoldsAreReportedInTurns() throws {
    let pipes = try (0..<8).map { _ in try Pipe() }
    let loop = try EventLoop(capacity: 3)
    for (index, pipe) in pipes.enumerated() { try loop.add(pipe.writer, .writable, token: UInt64(index)) }
    var seen: Set<UInt64> = []
    for _ in 0..<10 {
      let count = loop.wait(milliseconds: 0)
      #expect(count <= 3)
      for index in 0..<count {
        let token = loop.event(index).token
        seen.insert(token)
        if let pipe = pipes.indices.contains(Int(token)) ? pipes[Int(token)] : nil {
          loop.remove(pipe.writer)
        }
      }
    }
    #expect(seen == Set(0..<8))
  }

  @Test func interestCanBeChangedAndEnded() throws {
    let pair = try Pair()
    let loop = try EventLoop()
    try loop.add(pair.first, .readable, token: 1)
    #expect(loop.wait(milliseconds: 0) == 0)
    try loop.modify(pair.first, [.readable, .writable], token: 2)
    #expect(loop.wait(milliseconds: 0) == 1)
    #expect(loop.event(0).token == 2)
    #expect(loop.event(0).readiness == .writable)
    loop.remove(pair.first)
    #expect(loop.wait(milliseconds: 0) == 0)
    // Twice is no error.
    loop.remove(pair.first)
  }

  @Test func aPeerThatGoesAwayIsReportedAsSuch() throws {
    let pair = try Pair()
    let loop = try EventLoop()
    try loop.add(pair.first, [.readable, .peerClosed], token: 1)
    pair.closeSecond()
    #expect(loop.waitPatiently() == 1)
    let readiness = loop.event(0).readiness
    #expect(readiness.contains(.peerClosed))
    #expect(readiness.contains(.hangup))
  }

  @Test func addingTwiceOrModifyingTheUnknownThrows() throws {
    let counter = try EventCounter()
    let loop = try EventLoop()
    #expect(throws: Errno.noSuchFileOrDirectory) {
      try loop.modify(counter.fileDescriptor, .readable, token: 1)
    }
    try loop.add(counter.fileDescriptor, .readable, token: 1)
    #expect(throws: Errno.fileExists) { try loop.add(counter.fileDescriptor, .readable, token: 1) }
    #expect(throws: Errno.badFileDescriptor) { try loop.add(-1, .readable, token: 1) }
  }

  @Test func readinessHasTheKernelsBits() {
    #expect(Readiness.readable.rawValue == EPOLLIN.rawValue)
    #expect(Readiness.writable.rawValue == EPOLLOUT.rawValue)
    #expect(Readiness.error.rawValue == EPOLLERR.rawValue)
    #expect(Readiness.hangup.rawValue == EPOLLHUP.rawValue)
    #expect(Readiness.peerClosed.rawValue == EPOLLRDHUP.rawValue)
  }
}

private final class Pipe {
  let reader: Int32
  let writer: Int32
  init() throws {
    var ends: [Int32] = [-1, -1]
    try retrying { cxen_pipe2(&ends, cxen_O_CLOEXEC | cxen_O_NONBLOCK) }
    (reader, writer) = (ends[0], ends[1])
  }
  deinit {
    close(reader)
    close(writer)
  }
}

private final class Pair {
  let first: Int32
  private var second: Int32
  init() throws {
    var ends: [Int32] = [-1, -1]
    try retrying { socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0, &ends) }
    (first, second) = (ends[0], ends[1])
  }
  func closeSecond() {
    close(second)
    second = -1
  }
  deinit {
    close(first)
    if second >= 0 { close(second) }
  }
}
