// SPDX-License-Identifier: Apache-2.0
//
// The Swift ring against Xen's macros. Four systems — Swift and C at each end — go through one random schedule in
// step. After every step all four must have given the same answers and hold the same bytes in their shared pages.

import TestSupport
import Blkif
import CRingReference
import Glibc
import Platform
import Testing
import Xen

/// One pair of ends over pages of their own.
private final class System {
  let name: String
  let region: MappedRegion
  let front: any FrontEnd
  let back: any BackEnd

  init(swiftFront: Bool, swiftBack: Bool, pageCount: Int, abi: ABI, start: UInt32) throws {
    name = "\(swiftFront ? "Swift" : "C") front, \(swiftBack ? "Swift" : "C") back"
    region = try MappedRegion(anonymous: pageCount * Page.size)
    let pages = region.baseAddress
    front =
      swiftFront
      ? SwiftFront(pages, pageCount: pageCount, abi: abi, start: start)
      : CFront(pages, pageCount: pageCount, abi: abi, start: start)
    back =
      swiftBack
      ? try SwiftBack(pages, pageCount: pageCount, abi: abi)
      : CBack(pages, pageCount: pageCount, abi: abi, start: start)
  }
}

/// Every system of a schedule; a question put to all of them must get one answer.
private struct Lockstep {
  let systems: [System]
  let context: String

  func ask<Answer: Equatable>(_ what: String, step: Int, _ question: (System) throws -> Answer) throws
    -> Answer
  {
    let first = try question(systems[0])
    for system in systems.dropFirst() {
      let other = try question(system)
      try #require(
        other == first,
        "\(what) at step \(step): \(other) of \(system.name), \(first) of \(systems[0].name); \(context)")
    }
    return first
  }

  func comparePages(step: Int) throws {
    let first = systems[0].region.baseAddress
    for system in systems.dropFirst() {
      let equal = memcmp(first, system.region.baseAddress, system.region.byteCount) == 0
      if equal { continue }
      let reference = UnsafeRawBufferPointer(start: first, count: system.region.byteCount)
      let other = UnsafeRawBufferPointer(start: system.region.baseAddress, count: system.region.byteCount)
      let at = zip(reference, other).enumerated().first { $0.element.0 != $0.element.1 }?.offset ?? -1
      try #require(equal, "byte \(at) of \(system.name) differs at step \(step); \(context)")
    }
  }
}

@Suite struct RingDifferentialTests {
  static let starts: [UInt32] = [
    0, 1, 1 << 31 - 1, UInt32.max - 100, UInt32.max - 3, UInt32.max,
  ]

  @Test(arguments: [ABI.x86_64, .x86_32], starts)
  func swiftAndRingHAgreeOnEveryStepOfARandomSchedule(abi: ABI, start: UInt32) throws {
    for order in [0, 1, 4] {
      try run(abi: abi, start: start, pageCount: 1 << order, steps: order == 4 ? 1500 : 3000)
    }
  }

  private func run(abi: ABI, start: UInt32, pageCount: Int, steps: Int) throws {
    let seed = runSeed &+ UInt64(start) &* 64 &+ UInt64(pageCount)
    var random = SeededGenerator(seed: seed)
    let all = Lockstep(
      systems: try [(true, true), (true, false), (false, true), (false, false)].map {
        try System(swiftFront: $0.0, swiftBack: $0.1, pageCount: pageCount, abi: abi, start: start)
      }, context: "XBD_TEST_SEED=\(runSeed), \(abi), \(pageCount) pages, start \(start)")
    /// Taken by the backend and not answered yet.
    var taken: [WireResponse] = []
    var next: UInt64 = 0

    try all.comparePages(step: -1)
    for step in 0..<steps {
      switch Int.random(in: 0..<10, using: &random) {
      case 0, 1:
        let free = try all.ask("free requests", step: step) { $0.front.freeSlots }
        for _ in 0..<UInt32.random(in: 0...free, using: &random) {
          let request = AnyRequest.random(using: &random)
          for system in all.systems { system.front.enqueue(request) }
        }
      case 2:
        _ = try all.ask("notify the backend", step: step) { $0.front.publish() }
      case 3, 4:
        let count = try all.ask("unconsumed requests", step: step) { try $0.back.availableRequests() }
        for _ in 0..<UInt32.random(in: 0...count, using: &random) {
          let bytes = try all.ask("request", step: step) { $0.back.takeRequest() }
          // The answer's fields are random, as far as the ring is concerned.
          taken.append(
            WireResponse(
              id: next ^ UInt64(bytes[0]), operation: bytes[0],
              status: Int16.random(in: Int16.min...Int16.max, using: &random)))
          next &+= 0x1_0000_0001
        }
      case 5, 6:
        taken.shuffle(using: &random)
        for _ in 0..<Int.random(in: 0...taken.count, using: &random) {
          let response = taken.removeLast()
          for system in all.systems { system.back.push(response) }
        }
      case 7:
        _ = try all.ask("notify the frontend", step: step) { $0.back.publish() }
      case 8:
        let count = try all.ask("unconsumed responses", step: step) { try $0.front.availableResponses() }
        for _ in 0..<UInt32.random(in: 0...count, using: &random) {
          _ = try all.ask("response", step: step) { $0.front.takeResponse() }
        }
      default:
        if Bool.random(using: &random) {
          _ = try all.ask("final check for responses", step: step) { $0.front.finalCheck() }
        } else {
          _ = try all.ask("final check for requests", step: step) { $0.back.finalCheck() }
        }
      }
      try all.comparePages(step: step)
    }
  }

  @Test(arguments: [ABI.x86_64, .x86_32, .arm], [1, 2, 4, 8, 16])
  func capacityIsWhatRingHGives(abi: ABI, pageCount: Int) throws {
    let region = try MappedRegion(anonymous: pageCount * Page.size)
    var reference = cring()
    cring_front_init(&reference, region.baseAddress, region.byteCount, 0, abi == .x86_32)
    let ring = FrontRing(pages: region.baseAddress, pageCount: pageCount, abi: abi)
    let capacity = ring.capacity
    #expect(capacity == reference.capacity)
    #expect(RingLayout(abi).capacity(pageCount: pageCount) == reference.capacity)
    #expect(RingLayout(abi).stride == cring_slot_size(abi == .x86_32))
  }

  @Test(arguments: [ABI.x86_64, .x86_32], starts)
  func aBackendThatAttachesLaterTakesWhatAnEarlierOneLeft(abi: ABI, start: UInt32) throws {
    let region = try MappedRegion(anonymous: Page.size)
    var random = SeededGenerator(seed: runSeed)
    let front = SwiftFront(region.baseAddress, pageCount: 1, abi: abi, start: start)
    for _ in 0..<5 { front.enqueue(.random(using: &random)) }
    _ = front.publish()
    let earlier = try SwiftBack(region.baseAddress, pageCount: 1, abi: abi)
    for _ in 0..<3 { _ = earlier.takeRequest() }
    earlier.push(WireResponse(id: 1, operation: 0, status: 0))
    _ = earlier.publish()
    let later = try SwiftBack(region.baseAddress, pageCount: 1, abi: abi)
    let waiting = try later.availableRequests()
    #expect(waiting == 4)
  }
}
