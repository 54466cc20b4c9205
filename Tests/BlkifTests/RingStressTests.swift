// SPDX-License-Identifier: Apache-2.0
//
// A frontend and a backend on two threads over one mapping, sleeping whenever the ring lets them: under
// ThreadSanitizer the proof that the orderings are right, without it the proof that no wake-up is lost.

import TestSupport
import Blkif
import Platform
import Synchronization
import SystemPackage
import Testing
import Xen

/// What the two threads share besides the ring.
private final class Meeting: Sendable {
  let region: MappedRegion
  let wakeFront: EventCounter
  let wakeBack: EventCounter
  let failure = Mutex<String?>(nil)
  let done = Atomic<Bool>(false)
  let frontNotifications = Atomic<Int>(0)
  let backNotifications = Atomic<Int>(0)

  init(pageCount: Int) throws {
    region = try MappedRegion(anonymous: pageCount * Page.size)
    wakeFront = try EventCounter()
    wakeBack = try EventCounter()
  }

  func fail(_ reason: String) {
    failure.withLock { if $0 == nil { $0 = reason } }
    done.store(true, ordering: .releasing)
    wakeFront.signal()
    wakeBack.signal()
  }

  var isOver: Bool { done.load(ordering: .acquiring) }
}

/// Sleeps until the counter is signalled; half a minute without a signal is a lost wake-up.
private func sleep(
  in loop: inout EventLoop, on counter: borrowing EventCounter, _ who: String, _ meeting: Meeting
) {
  let deadline = MonotonicClock.nanoseconds() + 30_000_000_000
  while loop.wait(milliseconds: 1000) == 0 {
    if MonotonicClock.nanoseconds() > deadline {
      meeting.fail("the \(who) slept for 30 s: a wake-up was lost")
      return
    }
  }
  counter.drain()
}

@Suite struct RingStressTests {
  /// Fewer under a sanitizer, which is told by the environment that runs it.
  static let requests = 60_000

  @Test(arguments: [ABI.x86_64, .x86_32], [1, 4])
  func noRequestAndNoWakeUpIsLostBetweenTwoThreads(abi: ABI, pageCount: Int) throws {
    let meeting = try Meeting(pageCount: pageCount)
    let seed = runSeed
    let front = try DedicatedThread(name: "front") {
      do {
        try runFront(meeting, abi: abi, pageCount: pageCount, seed: seed)
      } catch {
        meeting.fail("frontend: \(error)")
      }
    }
    front.join()
    let failure = meeting.failure.withLock { $0 }
    #expect(failure == nil)
    // Hold-off works: far fewer notifications than requests, though every sleep was ended by one.
    let notifications = meeting.frontNotifications.load(ordering: .relaxed)
    #expect(notifications > 0 && notifications <= Self.requests)
  }
}

/// The sector that belongs to a request's number, so that the backend can tell a slot that it should not have seen.
private func sector(of id: UInt64) -> UInt64 { id &* 0x9E37_79B9_7F4A_7C15 }

private func runFront(_ meeting: Meeting, abi: ABI, pageCount: Int, seed: UInt64) throws {
  var ring = FrontRing(
    pages: meeting.region.baseAddress, pageCount: pageCount, abi: abi, startingAt: UInt32.max - 100)
  let back = try DedicatedThread(name: "back") {
    do {
      try runBack(meeting, abi: abi, pageCount: pageCount, seed: seed)
    } catch {
      meeting.fail("backend: \(error)")
    }
  }
  var loop = try EventLoop()
  try loop.add(meeting.wakeFront.fileDescriptor, .readable, token: 0)
  var random = SeededGenerator(seed: seed)
  let total = RingStressTests.requests
  var sent = 0
  var answered = 0
  var checksum: UInt64 = 0
  /// Now and then everything must be answered before more is sent: then each single notification counts.
  var draining = false
  while answered < total, !meeting.isOver {
    if ring.outstanding == 0 { draining = false }
    let room = draining ? 0 : min(Int(ring.freeSlots), total - sent)
    if room > 0 {
      draining = Int.random(in: 0..<8, using: &random) == 0
      for _ in 0..<(draining ? min(room, 2) : Int.random(in: 1...room, using: &random)) {
        let id = UInt64(sent)
        ring.enqueue().setDirect(.read, id: id, handle: 1, sector: sector(of: id), segmentCount: 0)
        checksum &+= id
        sent += 1
      }
      if ring.publish() == .required {
        meeting.frontNotifications.add(1, ordering: .relaxed)
        meeting.wakeBack.signal()
      }
    }
    let count = try ring.availableResponses()
    for _ in 0..<count {
      let response = ring.takeResponse()
      guard response.status == Int16(truncatingIfNeeded: response.id), response.operation == 0 else {
        meeting.fail("response \(response) does not belong to its request")
        break
      }
      checksum &-= response.id
      answered += 1
    }
    let nothingToSend = draining || ring.freeSlots == 0 || sent == total
    if count == 0, nothingToSend, answered < total, ring.armNotification() {
      sleep(in: &loop, on: meeting.wakeFront, "frontend", meeting)
    }
  }
  if answered == total, checksum != 0 { meeting.fail("a request was answered twice or not at all") }
  meeting.done.store(true, ordering: .releasing)
  meeting.wakeBack.signal()
  back.join()
}

private func runBack(_ meeting: Meeting, abi: ABI, pageCount: Int, seed: UInt64) throws {
  var ring = try BackRing(pages: meeting.region.baseAddress, pageCount: pageCount, abi: abi)
  var loop = try EventLoop()
  try loop.add(meeting.wakeBack.fileDescriptor, .readable, token: 0)
  var random = SeededGenerator(seed: ~seed)
  let buffer = UnsafeMutableRawPointer.allocate(byteCount: 112, alignment: 16)
  defer { buffer.deallocate() }
  while !meeting.isOver {
    let count = try ring.availableRequests()
    if count == 0 {
      if ring.armNotification() { sleep(in: &loop, on: meeting.wakeBack, "backend", meeting) }
      continue
    }
    for _ in 0..<UInt32.random(in: 1...count, using: &random) {
      let request = ring.takeRequest(into: buffer)
      let id = request.id
      guard request.sector == sector(of: id) else {
        meeting.fail("request \(id) was seen before it was written")
        return
      }
      ring.push(id: id, operation: request.operation, status: Int16(truncatingIfNeeded: id))
    }
    if ring.publish() == .required {
      meeting.backNotifications.add(1, ordering: .relaxed)
      meeting.wakeFront.signal()
    }
  }
}
