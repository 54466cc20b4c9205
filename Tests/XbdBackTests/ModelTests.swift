// SPDX-License-Identifier: Apache-2.0

import TestSupport
import Blkif
import Glibc
import Platform
import Testing
import Xen

@testable import XbdBack

/// Random requests, many in flight, against a plain array of bytes.
@Suite struct ModelTests {
  struct Setup: Sendable, CustomTestStringConvertible {
    let testDescription: String
    var usesFile = false
    var abi = ABI.x86_64
    var order = 1
    var persistent = true
    var configuration = BackendConfiguration.colocated
  }

  static let setups: [Setup] = [
    Setup(testDescription: "memory, colocated"),
    Setup(testDescription: "memory, own thread", abi: .x86_32, configuration: BackendConfiguration()),
    Setup(testDescription: "file, colocated", usesFile: true),
    Setup(testDescription: "file, own thread, polling", usesFile: true, configuration: polling),
    Setup(testDescription: "mapped per request", persistent: false),
    Setup(
      testDescription: "mapped one by one", usesFile: true, abi: .arm, persistent: false,
      configuration: single),
    Setup(testDescription: "grant copy", usesFile: true, configuration: copying),
    Setup(testDescription: "few persistent grants", order: 2, configuration: few),
  ]
  static var polling: BackendConfiguration {
    var configuration = BackendConfiguration()
    configuration.pollNanoseconds = 20_000
    configuration.publishInterval = 1
    return configuration
  }
  static let single = BackendConfiguration.colocated { $0.batchMapping = false }
  static let copying = BackendConfiguration.colocated { $0.dataPath = .grantCopy }
  static let few = BackendConfiguration.colocated {
    $0.maxPersistentGrants = 20
    $0.purgeIntervalMilliseconds = 0
  }

  private struct InFlight {
    var operation: BlockOperation
    var range: Range<Int>
    var expected: [UInt8]
    var segments: [Segment]
    var pages: [UInt32]
  }

  @Test(arguments: setups) func theDiskAgreesWithAnArrayOfBytes(_ setup: Setup) throws {
    let scratch = try ScratchDirectory()
    let sectors = 1024
    try makeImage(scratch.file("disk"), byteCount: sectors * 512)
    let storage: any Storage =
      setup.usesFile
      ? try FileStorage(path: scratch.file("disk")) : try MemoryStorage(byteCount: UInt64(sectors * 512))
    try withBackend(abi: setup.abi) { frontend, backend in
      try frontend.connect(
        backend, storage, setup.configuration, order: setup.order, persistent: setup.persistent)
      var generator = SeededGenerator(seed: 7)
      var model = [UInt8](repeating: 0, count: sectors * 512)
      var free = (frontend.dataPage..<frontend.dataPage + 400).map { $0 }
      var flying: [UInt64: InFlight] = [:]
      var sent = 0
      while sent < 3000 || !flying.isEmpty {
        while sent < 3000, frontend.freeSlots > 0, flying.count < 24, free.count > 20 {
          guard let (id, request) = send(frontend, &generator, sectors, &free, flying) else { break }
          flying[id] = request
          sent += 1
        }
        if flying.isEmpty { continue }
        try frontend.publishRequests()
        let arrived = try eventually {
          _ = frontend.device?.colocatedQueue(0)?.run()
          try frontend.collect()
          return !frontend.responses.isEmpty
        }
        guard arrived else { throw TestFailure(what: "no answer to \(flying.count) requests") }
        for (id, response) in frontend.responses {
          guard let request = flying.removeValue(forKey: id) else {
            throw TestFailure(what: "unasked answer")
          }
          #expect(response.status == 0)
          free.append(contentsOf: request.pages)
          switch request.operation {
          case .read:
            guard bytes(frontend, request.segments) == Array(model[request.range]) else {
              throw TestFailure(what: "request \(sent): sectors \(request.range) differ")
            }
          case .write, .writeBarrier, .discard:
            model.replaceSubrange(request.range, with: request.expected)
          default:
            break
          }
        }
        frontend.responses = [:]
      }
      #expect(frontend.device?.statistics.errors == 0)
      frontend.set("state", "6")
      #expect(eventually { frontend.backState == "6" })
      #expect(frontend.xen.mappedPages == 0)
      var whole = [UInt8](repeating: 1, count: model.count)
      #expect(transfer(storage, .read, at: 0, &whole) == .done)
      #expect(whole == model)
    }
  }

  private func send(
    _ frontend: TestFrontend, _ generator: inout SeededGenerator, _ sectors: Int, _ free: inout [UInt32],
    _ flying: [UInt64: InFlight]
  ) -> (UInt64, InFlight)? {
    let kinds: [BlockOperation] = [
      .read, .read, .read, .write, .write, .write, .indirect, .discard, .flush, .writeBarrier,
    ]
    var kind = kinds.randomElement(using: &generator) ?? .read
    let isIndirect = kind == .indirect
    if isIndirect { kind = Bool.random(using: &generator) ? .read : .write }
    if kind == .flush, generator.next() % 8 != 0 { return nil }
    if kind == .flush {
      let id = frontend.enqueue(.flush, sector: 0, [])
      return (id, InFlight(operation: .flush, range: 0..<0, expected: [], segments: [], pages: []))
    }
    var segments: [Segment] = []
    var pages: [UInt32] = []
    for _ in 0..<Int.random(in: 1...(isIndirect ? 18 : 5), using: &generator) {
      let index = Int.random(in: 0..<free.count, using: &generator)
      pages.append(free.remove(at: index))
      let whole = Bool.random(using: &generator)
      let first = whole ? 0 : UInt8.random(in: 0...7, using: &generator)
      let last = whole ? 7 : UInt8.random(in: first...7, using: &generator)
      segments.append(Segment(reference: GrantRef(pages.last ?? 0), firstSector: first, lastSector: last))
    }
    let count = segments.reduce(0) { $0 + $1.sectorCount }
    let start = Int.random(in: 0...(sectors - count), using: &generator)
    let range = start * 512..<(start + count) * 512
    // Requests that are in flight together have no order, so they must not touch.
    guard flying.values.allSatisfy({ !$0.range.overlaps(range) }) else {
      free.append(contentsOf: pages)
      return nil
    }
    var expected = [UInt8](repeating: 0, count: range.count)
    if kind == .write || kind == .writeBarrier {
      let first = UInt8(truncatingIfNeeded: generator.next())
      for index in expected.indices { expected[index] = first &+ UInt8(truncatingIfNeeded: index) }
      fill(frontend, segments, expected)
    }
    var request = InFlight(
      operation: kind, range: range, expected: expected, segments: segments, pages: pages)
    if kind == .discard {
      free.append(contentsOf: pages)
      request.pages = []
      let id = frontend.enqueue { slot, id in
        slot.setDiscard(id: id, handle: 0, sector: UInt64(start), sectorCount: UInt64(count))
      }
      return (id, request)
    }
    if isIndirect {
      let list = free.removeFirst()
      request.pages.append(list)
      return (frontend.enqueueIndirect(kind, sector: UInt64(start), segments, page: list), request)
    }
    return (frontend.enqueue(kind, sector: UInt64(start), segments), request)
  }

  private func bytes(_ frontend: TestFrontend, _ segments: [Segment]) -> [UInt8] {
    segments.flatMap { segment in
      Array(
        UnsafeRawBufferPointer(
          start: frontend.xen.page(segment.reference.rawValue) + Int(segment.firstSector) * 512,
          count: segment.sectorCount * 512))
    }
  }

  private func fill(_ frontend: TestFrontend, _ segments: [Segment], _ bytes: [UInt8]) {
    var position = 0
    for segment in segments {
      let target = frontend.xen.page(segment.reference.rawValue) + Int(segment.firstSector) * 512
      bytes.withUnsafeBytes { source in
        guard let base = source.baseAddress else { return }
        target.copyMemory(from: base + position, byteCount: segment.sectorCount * 512)
      }
      position += segment.sectorCount * 512
    }
  }
}
