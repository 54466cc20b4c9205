// SPDX-License-Identifier: Apache-2.0
//
// Grants of the loopback: gntalloc's rules, maptrack, and what the seam leaves open.

import TestSupport
import Glibc
import Platform
import Synchronization
import Testing
import Xen

@testable import XenConformance
@testable import XenLoopback

@Suite struct GrantTests {
  @Test func theDomainsPageLimitHoldsForAllItsProcessesAndCanBeRaised() throws {
    let machine = try Machine(pageLimit: 10)
    let (one, two) = (try machine.join(1).openGrantSharing(), try machine.join(1).openGrantSharing())
    let first = try one.share(pages: 6, with: .dom0, writable: true)
    #expect {
      _ = try two.share(pages: 5, with: .dom0, writable: true)
    } throws: { error in
      guard let error = error as? XenError else { return false }
      return error.code == .limitReached && error.message.contains("10")
        && error.message.contains("setPageLimit")
    }
    var second: SharedPages? = try two.share(pages: 4, with: .dom0, writable: true)
    #expect(second?.pageCount == 4)
    #expect(throws: XenError.self) { _ = try one.share(pages: 1, with: .dom0, writable: true) }
    second = nil
    _ = try one.share(pages: 4, with: .dom0, writable: true)
    try machine.toolstack.setPageLimit(100, of: DomainID(1))
    _ = try one.share(pages: 90, with: .dom0, writable: true)
    #expect(first.pageCount == 6)
    #expect(throws: XenError.self) { try machine.toolstack.setPageLimit(40_000, of: DomainID(1)) }
  }

  @Test func aThousandPagesAreTheDefaultLimit() throws {
    let machine = try Machine()
    let sharing = try machine.join(1).openGrantSharing()
    let all = try sharing.share(pages: 1024, with: .dom0, writable: true)
    #expect(Set(all.references).count == 1024)
    #expect(throws: XenError.self) { _ = try sharing.share(pages: 1, with: .dom0, writable: true) }
  }

  /// Each of them would keep two descriptors, and a backend lives longer than its guests.
  @Test func aProcessKeepsNothingOpenOfDomainsThatAreGone() throws {
    let machine = try Machine()
    let backend = try machine.join(0)
    let mapping = try backend.openGrantMapping()
    for number in 10..<20 as Range<UInt16> {
      try machine.toolstack.createDomain(DomainID(number))
      let pages = try machine.join(number).openGrantSharing().share(pages: 1, with: .dom0, writable: true)
      _ = try mapping.map(pages.references, of: DomainID(number), writable: true)
      try machine.toolstack.destroyDomain(DomainID(number))
      #expect(backend.connection.foreignDomains == [number])
    }
  }

  @Test func freedPagesGoBackToTheSystemAndComeBackZero() throws {
    let machine = try Machine()
    let sharing = try machine.join(1).openGrantSharing()
    for round in 0..<50 {
      let pages = try sharing.share(pages: 64, with: .dom0, writable: true)
      let bytes = UnsafeRawBufferPointer(start: pages.baseAddress, count: 64 * Page.size)
      #expect(bytes.allSatisfy { $0 == 0 }, "round \(round)")
      memset(pages.baseAddress, 0xFF, 64 * Page.size)
    }
    let memory = try LoopbackConnection(directory: machine.host.directory, domain: 1, policy: .perVCPU).memory
    var status = stat()
    #expect(fstat(memory.pagesDescriptor.raw, &status) == 0)
    #expect(status.st_blocks == 0)
  }

  @Test func theMaptrackLimitIsReachedAndNothingIsLost() throws {
    let machine = try Machine(maptrackLimit: 256)
    let pages = try machine.join(1).openGrantSharing().share(pages: 100, with: DomainID(2), writable: true)
    for policy in MaptrackPolicy.allCases {
      let mapping = try machine.join(2, policy).openGrantMapping()
      var mapped: [UnsafeMutableRawPointer] = []
      do {
        while mapped.count < 100 {
          mapped.append(try mapping.map(pages.references, of: DomainID(1), writable: true))
        }
      } catch {
        #expect(error.code == .limitReached)
      }
      #expect(mapped.count == 2)
      for address in mapped { try mapping.unmap(address, count: 100) }
      let again = try mapping.map(pages.references, of: DomainID(1), writable: true)
      try mapping.unmap(again, count: 100)
    }
  }

  @Test func handlesThatAreClosedLeaveTheirMaptrackToTheNext() throws {
    let machine = try Machine(maptrackLimit: 256)
    let pages = try machine.join(1).openGrantSharing().share(pages: 200, with: DomainID(2), writable: true)
    let domain = try machine.join(2)
    for _ in 0..<100 {
      let mapping = try domain.openGrantMapping()
      _ = try mapping.map(pages.references, of: DomainID(1), writable: true)
    }
  }

  @Test func aHandleWithoutFramesTakesWhatAnotherHasLeft() throws {
    let machine = try Machine(maptrackLimit: 256)
    let pages = try machine.join(1).openGrantSharing().share(pages: 200, with: DomainID(2), writable: true)
    let domain = try machine.join(2)
    let first = try domain.openGrantMapping()
    let second = try domain.openGrantMapping()
    for _ in 0..<3 {
      for mapping in [first, second] {
        let address = try mapping.map(pages.references, of: DomainID(1), writable: true)
        try mapping.unmap(address, count: 200)
      }
    }
  }

  @Test func unmappingWhatWasNotMappedIsRefused() throws {
    let machine = try Machine()
    let pages = try machine.join(1).openGrantSharing().share(pages: 4, with: .dom0, writable: true)
    let mapping = try machine.join(0).openGrantMapping()
    let address = try mapping.map(pages.references, of: DomainID(1), writable: true)
    #expect(throws: XenError.self) { try mapping.unmap(address, count: 3) }
    #expect(throws: XenError.self) { try mapping.unmap(address + Page.size, count: 3) }
    try mapping.unmap(address, count: 4)
    #expect(throws: XenError.self) { try mapping.unmap(address, count: 4) }
    #expect(throws: XenError.self) { _ = try mapping.map([], of: DomainID(1), writable: true) }
    #expect { _ = try mapping.map(pages.references, of: DomainID(99), writable: true) } throws: {
      ($0 as? XenError)?.code == .notFound
    }
  }

  @Test func manyMappingsAreFoundAgainInAnyOrder() throws {
    let machine = try Machine()
    let pages = try machine.join(1).openGrantSharing().share(pages: 200, with: .dom0, writable: true)
    let mapping = try machine.join(0).openGrantMapping()
    var generator = SeededGenerator(seed: 3)
    var live: [(UnsafeMutableRawPointer, Int, [GrantRef])] = []
    for page in 0..<200 {
      (pages.baseAddress + page * Page.size).storeBytes(of: UInt32(page), as: UInt32.self)
    }
    for _ in 0..<3000 {
      if live.count < 80, Bool.random(using: &generator) {
        let references = (0..<Int.random(in: 1...11, using: &generator)).map { _ in
          pages.references.randomElement(using: &generator) ?? GrantRef(8)
        }
        live.append(
          (try mapping.map(references, of: DomainID(1), writable: true), references.count, references))
      } else if let index = live.indices.randomElement(using: &generator) {
        let (address, count, references) = live.remove(at: index)
        for (place, reference) in references.enumerated() {
          let expected = UInt32(pages.references.firstIndex(of: reference) ?? 0)
          #expect((address + place * Page.size).load(as: UInt32.self) == expected)
        }
        try mapping.unmap(address, count: count)
      }
    }
  }

  @Test func aReadOnlyMappingFaultsWhenWritten() throws {
    let machine = try Machine()
    let pages = try machine.join(1).openGrantSharing().share(pages: 1, with: .dom0, writable: true)
    // In another process, because it dies of it.
    let victim = try Helper.party(machine, 0)
    let mapped = try victim.map(pages.references, of: DomainID(1), writable: false)
    #expect(try victim.peek(mapped, 0, 1) == [0])
    #expect { try victim.poke(mapped, 0, [1]) } throws: { ($0 as? XenError)?.code == .disconnected }
    #expect(pages.baseAddress.load(as: UInt8.self) == 0)
  }

  @Test func threadsMapShareAndCopyAtTheSameTime() throws {
    let machine = try Machine(pageLimit: 4096)
    let (front, back) = (try machine.join(1), try machine.join(0))
    let (sharing, mapping) = (try front.openGrantSharing(), try back.openGrantMapping())
    let failures = Counter()
    var threads: [DedicatedThread] = []
    for number in 0..<4 {
      threads.append(
        try DedicatedThread(name: "grants-\(number)") {
          do {
            for round in 0..<200 {
              let pages = try sharing.share(pages: 1 + (round + number) % 7, with: .dom0, writable: true)
              let mark = UInt64(number * 1000 + round)
              pages.baseAddress.storeBytes(of: mark, as: UInt64.self)
              let address = try mapping.map(pages.references, of: DomainID(1), writable: true)
              if address.load(as: UInt64.self) != mark { failures.value.add(1, ordering: .relaxed) }
              try mapping.unmap(address, count: pages.pageCount)
            }
          } catch {
            failures.value.add(1, ordering: .relaxed)
          }
        })
    }
    for thread in threads { thread.join() }
    #expect(failures.value.load(ordering: .relaxed) == 0)
    #expect(try machine.toolstack.status(of: DomainID(1)).pagesShared == 0)
  }

  @Test(arguments: MaptrackPolicy.allCases)
  func noMaptrackHandleIsGivenTwiceOrLost(_ policy: MaptrackPolicy) throws {
    let memory = try DomainMemory(creating: 0, serial: 0, pageLimit: 0, frameLimit: 16)
    let maptrack = Maptrack(memory, join: 1, policy: policy)
    let owners = UnsafeMutablePointer<Atomic<Int>>.allocate(capacity: DomainLayout.maptrackCount)
    for index in 0..<DomainLayout.maptrackCount { (owners + index).initialize(to: Atomic(0)) }
    defer { owners.deallocate() }
    nonisolated(unsafe) let table = owners
    let doubled = Counter()
    // Each thread takes on its own vCPU and frees what another took, as a vCPU that handles another's completion.
    let exchange = Handles()
    var threads: [DedicatedThread] = []
    for vcpu in 0..<4 {
      threads.append(
        try DedicatedThread(name: "maptrack-\(vcpu)") {
          for round in 0..<20_000 {
            if let handle = maptrack.take(asVCPU: vcpu) {
              if table[Int(handle)].exchange(1, ordering: .acquiringAndReleasing) != 0 {
                doubled.value.add(1, ordering: .relaxed)
              }
              exchange.list.withLock { $0.append(handle) }
            }
            if round % 3 != 0, let other = exchange.list.withLock({ $0.isEmpty ? nil : $0.removeFirst() }) {
              table[Int(other)].store(0, ordering: .releasing)
              maptrack.put(other)
            }
          }
        })
    }
    for thread in threads { thread.join() }
    #expect(doubled.value.load(ordering: .relaxed) == 0)
    for handle in exchange.list.withLock({ $0 }) { maptrack.put(handle) }
    // All frames of all vCPUs can be had again, but for the entry that each list keeps.
    var free = 0
    for vcpu in 0..<4 { while maptrack.take(asVCPU: vcpu) != nil { free += 1 } }
    let all = 16 * DomainLayout.entriesPerFrame
    #expect(free >= all - 4 && free <= all)
  }

  @Test(arguments: MaptrackPolicy.allCases)
  func theMaptrackBenchmarkMeasures(_ policy: MaptrackPolicy) throws {
    #expect(try maptrackBenchmark(policy: policy, threads: 2, iterations: 10_000) > 0)
  }
}

private final class Counter: Sendable {
  let value = Atomic<Int>(0)
}

private final class Handles: Sendable {
  let list = SpinLocked<[UInt32]>([])
}
