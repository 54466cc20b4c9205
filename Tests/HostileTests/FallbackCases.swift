// SPDX-License-Identifier: Apache-2.0
//
// Cases 46 to 52 of the hostile backend: features that fail although they were offered, errors in the middle, and the
// edges of what callers may ask for.

import CXen
import Glibc
import HostileBackend
import Platform
import Testing
import Xen
import XenLoopback

@testable import XbdFront

@Suite struct FallbackCases {
  /// Operations that the backend was asked for.
  static func operations(_ victim: Victim) -> [UInt8] {
    victim.backend.catchUp()
    return victim.backend.observations.requests.map(\.operation)
  }

  @Test func case46_aFlushThatIsRefusedBecomesABarrierAndThenNothing() throws {
    let victim = try Victim(Plan([.refuse(operation: 3, status: -2)]))
    victim.backend.keepRequests()
    victim.backend.catchUp()
    #expect(victim.status(.flush) == .okay)
    #expect(Self.operations(victim) == [3, 2])
    #expect(victim.queue.parameters.flush == .barrier)
    victim.backend.follow(Plan([.refuse(operation: 2, status: -2)]))
    #expect(victim.status(.flush) == .notSupported)
    #expect(victim.queue.parameters.flush == .none)
    #expect(victim.status(.write, 0, 512, fua: true) == .notSupported)
    #expect(victim.status(.write, 0, 512) == .okay)
    victim.stop()
  }

  @Test func case46_whateverElseIsRefused() throws {
    // For ever, from the first: indirect requests become direct ones, a discard is not tried again, a write fails.
    for copy in CopyMode.allCases {
      let victim = try Victim(
        Plan([.refuseIndirect, .refuse(operation: 5, status: -2)]), options: Victim.options { $0.copy = copy }
      )
      victim.expectWorking()
      #expect(victim.queue.parameters.maxSegments == 11)
      #expect(victim.status(.discard, 0, 1 << 20) == .notSupported)
      let taken = victim.backend.observations.taken
      #expect(victim.status(.discard, 0, 1 << 20) == .notSupported)
      #expect(victim.backend.observations.taken == taken)
      victim.backend.follow(Plan([.refuse(operation: 1, status: -2)]))
      #expect(victim.status(.write, 0, 4096) == .notSupported)
      #expect(victim.status(.read, 0, 4096) == .okay)
      victim.backend.follow(Plan())
      victim.expectWorking()
      victim.stop()
    }
  }

  @Test(
    arguments: [
      ("1", "1", [3], [1, 3]), ("1", "0", [3], [1, 3]), ("0", "1", [2], [1, 2]), ("0", "0", [], []),
    ] as [(String, String, [UInt8], [UInt8])])
  func case47_eachWayToFlush(way: (flush: String, barrier: String, operations: [UInt8], durable: [UInt8]))
    throws
  {
    let victim = try Victim(nodes: ["feature-flush-cache": way.flush, "feature-barrier": way.barrier])
    victim.backend.keepRequests()
    victim.backend.catchUp()
    #expect(victim.status(.flush) == (way.operations.isEmpty ? .notSupported : .okay))
    #expect(Self.operations(victim) == way.operations)
    #expect(victim.status(.write, 0, 4096, fua: true) == (way.durable.isEmpty ? .notSupported : .okay))
    #expect(Self.operations(victim) == way.operations + way.durable)
    victim.stop()
  }

  @Test(arguments: CopyMode.allCases, [1, 2, 3, 4])
  func case48_oneFailedPartFailsTheWholeOnceAfterAllHaveEnded(copy: CopyMode, part: Int) throws {
    let victim = try Victim(
      Plan([.failNth(part), .answerLate(milliseconds: part == 1 ? 30 : 5)]),
      options: Victim.options {
        $0.copy = copy
        $0.maxSegments = 11
      })
    let tag = try #require(victim.submit(.read, 0, 4 * 45056))
    victim.run("an end", until: { victim.ended[tag] != nil })
    #expect(victim.ended[tag]?.status == .ioError)
    #expect(victim.ended[tag]?.data.isEmpty == true)
    #expect(victim.queue.unfinishedOperations == 0)
    victim.run(milliseconds: 60)
    #expect(victim.ended.count == 1)
    victim.backend.follow(Plan())
    victim.expectWorking()
    victim.stop()
  }

  @Test(arguments: CopyMode.allCases)
  func case49_aFailedReadGivesNoBytes(copy: CopyMode) throws {
    let victim = try Victim(Plan([.status(-1)]), options: Victim.options { $0.copy = copy })
    for (offset, count) in [(0, 4096), (100, 1000), (0, 131072), (511, 1)] {
      let read = victim.perform(.read, offset, count)
      #expect(read?.status == .ioError)
      #expect(read?.data.isEmpty == true)
    }
    // An unaligned write whose edges cannot be read writes nothing.
    let before = victim.backend.disk.contents(0, 4096)
    #expect(victim.status(.write, 100, 1000) == .ioError)
    victim.backend.catchUp()
    #expect(victim.backend.disk.contents(0, 4096) == before)
    victim.backend.follow(Plan())
    victim.expectWorking()
    victim.stop()
  }

  @Test(arguments: CopyMode.allCases)
  func case50_rangesOfEveryKind(copy: CopyMode) throws {
    let victim = try Victim(options: Victim.options { $0.copy = copy })
    let size = 4 << 20
    let disk = victim.backend.disk
    for (offset, count) in [
      (1, 511), (511, 1), (511, 2), (4095, 2), (4095, 4097), (0, 512), (512, 45056), (512, 45056 + 512),
      (0, 12 * 4096), (0, 32 * 4096), (0, 32 * 4096 + 512), (4096, 33 * 4096), (size - 1, 1),
      (size - 4096, 4096),
      (3, 3 << 20),
    ] {
      let data = Victim.bytes(count, seed: UInt64(offset &* 31 &+ count))
      let around = (disk.contents(max(0, offset - 512), min(512, offset)), offset)
      #expect(victim.perform(.write, offset, count, data: data)?.status == .okay, "\(count) at \(offset)")
      #expect(victim.perform(.read, offset, count)?.data == data, "\(count) at \(offset)")
      #expect(disk.contents(max(0, offset - 512), min(512, around.1)) == around.0)
    }
    for (offset, count, status) in [
      (UInt64(size), 1, .outOfRange), (UInt64(size) - 1, 2, .outOfRange), (.max, 1, .outOfRange),
      (.max - 511, 512, .outOfRange), (1 << 63, 1 << 63, .outOfRange), (0, .max, .outOfRange), (0, 0, .okay),
      (UInt64(size), 0, .okay),
    ] as [(UInt64, UInt64, OperationStatus)] {
      for command in [BlockRequest.Command.read, .writeZeroes] {
        let request = BlockRequest(command: command, byteOffset: offset, byteCount: count)
        let tag = 900_000 + count % 1000
        let operation = try #require(victim.queue.begin(request, tag: tag))
        victim.queue.submit(operation)
        victim.queue.poll()
        #expect(victim.ended[tag]?.status == status, "\(count) at \(offset)")
      }
    }
    victim.expectWorking()
    victim.stop()
  }

  @Test(arguments: CopyMode.allCases, GrantMode.allCases)
  func case51_manyMoreRequestsThanTheRingAndThePoolHoldAllComeThrough(copy: CopyMode, grants: GrantMode)
    throws
  {
    let victim = try Victim(
      Plan([.reverseAnswers(batch: 8)]),
      options: Victim.options {
        $0.copy = copy
        $0.grants = grants
        $0.poolPages = 24
      })
    var tags: [UInt64?] = []
    for index in 0..<250 {
      let place = index % 60 * 65536
      switch index % 5 {
      case 0: tags.append(victim.submit(.write, place, 20480, data: Victim.bytes(20480, seed: UInt64(place))))
      case 1: tags.append(victim.submit(.read, place, 65536))
      case 2: tags.append(victim.submit(.writeZeroes, place + 32768, 16384))
      case 3: tags.append(victim.submit(.write, place + 50001, 3001))
      default: tags.append(victim.submit(.read, place + 17, 100))
      }
    }
    victim.run("every end", until: { victim.ended.count == 250 })
    #expect(tags.allSatisfy { $0.flatMap { victim.ended[$0]?.status } == .okay })
    let counters = victim.queue.counters
    #expect(counters.waitsForRing + counters.waitsForPages > 0)
    victim.stop()
  }

  @Test func case52_noDescriptorReachesAProgramThatIsStarted() throws {
    let victim = try Victim()
    let store = try victim.frontend.openXenStore()
    try store.watch(victim.machine.device.frontendPath, token: "x")
    let channels = try victim.frontend.openEventChannels()
    for descriptor in victim.queue.descriptors + [store.fileDescriptor, channels.fileDescriptor] {
      #expect(fcntl(descriptor, F_GETFD) & FD_CLOEXEC != 0, "descriptor \(descriptor)")
    }
    // Everything else of this machine's that is open. Libraries may open something and set the flag behind it, so that
    // what other tests are doing at this moment is looked at again.
    var open: [String] = []
    for _ in 0..<50 {
      open = Self.inheritable()
      if open.isEmpty { break }
      usleep(20_000)
    }
    #expect(open.isEmpty, "\(open)")
    victim.stop()
  }

  /// What descriptors without close-on-exec lead to, where it is ours: shared memory, counters, sockets of a host.
  static func inheritable() -> [String] {
    (3..<1024).compactMap { (descriptor: Int32) -> String? in
      let flags = fcntl(descriptor, F_GETFD)
      guard flags >= 0, flags & FD_CLOEXEC == 0 else { return nil }
      var address = sockaddr_un()
      var length = socklen_t(MemoryLayout<sockaddr_un>.size)
      let isSocket = withUnsafeMutablePointer(to: &address) { pointer in
        pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
          getpeername(descriptor, $0, &length) == 0
        }
      }
      var path = [CChar](repeating: 0, count: 256)
      let count = readlink("/proc/self/fd/\(descriptor)", &path, 255)
      var name = String(decoding: path.prefix(max(0, count)).map { UInt8(bitPattern: $0) }, as: UTF8.self)
      if isSocket {
        name = withUnsafeBytes(of: &address.sun_path) {
          String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self)
        }
      }
      let ours = ["memfd:", "[eventfd]", "[eventpoll]", "[timerfd]", "/dev/xen", "xbd-hostile"]
      return ours.contains { name.contains($0) } ? name : nil
    }
  }
}
