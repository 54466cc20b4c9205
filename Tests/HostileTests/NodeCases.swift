// SPDX-License-Identifier: Apache-2.0
//
// Cases 27 to 38 of the hostile backend: what it writes into xenstore. A value that makes no sense is refused in a
// sentence that names it; nothing is guessed, nothing hangs.

import CXen
import Glibc
import HostileBackend
import Platform
import Testing
import Xen
import XenLoopback

@testable import XbdFront

@Suite struct NodeCases {
  /// The device is refused, and the sentence names the key.
  static func expectRefused(
    _ key: String, _ value: String?, and nodes: [String: String] = [:],
    sourceLocation: SourceLocation = #_sourceLocation
  ) throws {
    let error = try refusal(Plan([.node(key, value.map { Array($0.utf8) })]), nodes: nodes)
    #expect(
      error?.code == .malformed, "\(key)=\(value ?? "-"): \(error as Any)", sourceLocation: sourceLocation)
    #expect(error?.message.contains(key) == true, sourceLocation: sourceLocation)
    #expect((error?.message.utf8.count ?? 0) < 600, sourceLocation: sourceLocation)
  }

  /// The device connects.
  static func expectTaken(
    _ nodes: [String: String?], sourceLocation: SourceLocation = #_sourceLocation,
    _ check: (Victim) throws -> Void = { _ in }
  ) throws {
    let victim = try Victim(
      Plan(nodes.sorted { $0.key < $1.key }.map { .node($0.key, $0.value.map { Array($0.utf8) }) }))
    try check(victim)
    victim.stop(sourceLocation: sourceLocation)
  }

  @Test(arguments: [
    nil, "", "-1", "4x", " 8", "+8", "0x10", "8 ", "8\0", "\0", String(repeating: "9", count: 3900),
    "18446744073709551615", "18446744073709551616", "36028797018963968", "١",
  ])
  func case27_aSizeThatIsNoneIsRefused(value: String?) throws {
    try Self.expectRefused("sectors", value)
  }

  @Test(arguments: ["0", "8", "00000000000000000008", "18014398509481983"])
  func case27_everyOtherSizeIsTaken(value: String) throws {
    try Self.expectTaken(["sectors": value]) { victim in
      #expect(victim.device.features.sectorCount == UInt64(value))
      // The end is where it should be, even where bytes do not fit into 63 bits.
      let end = (UInt64(value) ?? 0) << 9
      let request = BlockRequest(command: .read, byteOffset: end, byteCount: 512)
      let operation = try #require(victim.queue.begin(request, tag: 777))
      victim.queue.submit(operation)
      victim.run("an end", until: { victim.ended[777] != nil })
      #expect(victim.ended[777]?.status == .outOfRange)
    }
  }

  @Test(arguments: [
    "0", "1", "3", "256", "511", "513", "520", "8192", "65536", "2147483648", "4294967808", "-512", "",
  ])
  func case28_aSectorSizeThatCannotBeIsRefused(value: String) throws {
    try Self.expectRefused("sector-size", value)
  }

  @Test func case28_everyPowerOfTwoUpToAPageIsTaken() throws {
    for size in [512, 1024, 2048, 4096] {
      try Self.expectTaken(["sector-size": "\(size)", "physical-sector-size": nil]) { victim in
        #expect(victim.queue.parameters.sectorSize == size)
        victim.expectWorking()
      }
    }
  }

  @Test(arguments: ["8191", "1", "8193"])
  func case29_aSizeThatIsNoWholeNumberOfSectorsIsRefused(value: String) throws {
    try Self.expectRefused("sectors", value, and: ["sector-size": "4096"])
  }

  @Test func case29_aPhysicalSectorThatMakesNoSenseIsTheLogicalOne() throws {
    for (value, size) in [("0", 512), ("256", 512), ("513", 512), ("4096", 4096), ("768", 512)] {
      try Self.expectTaken(["physical-sector-size": value]) {
        #expect($0.device.features.physicalSectorSize == size)
      }
    }
    try Self.expectRefused("physical-sector-size", "many")
  }

  @Test func case30_indirectSegmentsAreBroughtDownToWhatIsWanted() throws {
    for (value, segments) in [
      (nil, 11), ("0", 11), ("1", 11), ("11", 11), ("12", 12), ("512", 32), ("513", 32), ("4096", 32),
      ("4097", 32), ("2147483648", 32),
    ] as [(String?, Int)] {
      try Self.expectTaken(["feature-max-indirect-segments": value]) { victim in
        #expect(victim.device.transport.maxSegments == segments, "\(value ?? "-")")
        victim.expectWorking()
      }
    }
    for value in ["4294967552", "-1", "", "256 "] {
      try Self.expectRefused("feature-max-indirect-segments", value)
    }
  }

  @Test func case31_ringOrdersThatContradictEachOther() throws {
    let options = Victim.options { $0.ringPageOrder = 4 }
    for (order, pages, expected) in [
      ("0", nil, 0), ("4", nil, 4), ("20", nil, 4), ("31", nil, 4), ("1", "16", 1), ("4", "1", 4),
      (nil, "8", 3),
      (nil, "2147483648", 4), (nil, nil, 0),
    ] as [(String?, String?, Int)] {
      let victim = try Victim(
        Plan([
          .node("max-ring-page-order", order.map { Array($0.utf8) }),
          .node("max-ring-pages", pages.map { Array($0.utf8) }),
        ]), options: options)
      #expect(victim.device.transport.ringPageOrder == expected)
      victim.expectWorking()
      victim.stop()
    }
    for value in ["32", "1048576", "-1", "4 "] { try Self.expectRefused("max-ring-page-order", value) }
    for value in ["0", "3", "5000000000", "-4"] {
      let error = try refusal(
        Plan([.node("max-ring-page-order", nil), .node("max-ring-pages", Array(value.utf8))]))
      #expect(error?.message.contains("max-ring-pages") == true)
    }
  }

  @Test func case32_queuesBeyondReason() throws {
    for value in ["0", "1", nil] {
      try Self.expectTaken(["multi-queue-max-queues": value]) { #expect($0.device.queues.count == 1) }
    }
    // As many as wanted and no more, though this backend then serves none of them.
    let error = try refusal(
      Plan([.node("multi-queue-max-queues", Array("65535".utf8))]),
      options: Victim.options {
        $0.queueCount = 3
        $0.handshakeTimeout = .milliseconds(300)
      })
    #expect(error?.code == .timedOut)
    for value in ["65536", "-1", "x"] { try Self.expectRefused("multi-queue-max-queues", value) }
  }

  @Test func case33_discardLimitsThatMakeNoSense() throws {
    for (granularity, alignment, limits) in [
      ("0", "0", DiscardLimits(granularity: 512, alignment: 0, secure: false)),
      (nil, nil, DiscardLimits(granularity: 512, alignment: 0, secure: false)),
      ("4096", nil, DiscardLimits(granularity: 4096, alignment: 0, secure: false)),
      (nil, "512", DiscardLimits(granularity: 512, alignment: 0, secure: false)),
      ("4096", "9216", DiscardLimits(granularity: 4096, alignment: 1024, secure: false)),
      ("1099511627776", "0", DiscardLimits(granularity: 1 << 40, alignment: 0, secure: false)),
    ] as [(String?, String?, DiscardLimits)] {
      try Self.expectTaken(["discard-granularity": granularity, "discard-alignment": alignment]) { victim in
        #expect(victim.queue.parameters.discard == limits)
        #expect(victim.status(.discard, 0, 1 << 20) == .okay)
      }
    }
    for value in ["1", "3", "513", "-1", "1099511627777"] {
      try Self.expectRefused("discard-granularity", value)
    }
    try Self.expectRefused("discard-alignment", "3")
  }

  @Test func case34_bitsOfInfoThatNobodyKnows() throws {
    for (value, readOnly) in [
      ("0", false), ("2", false), ("8", false), ("4294967288", false), ("4", true), ("4294967295", true),
      (nil, false),
    ] as [(String?, Bool)] {
      try Self.expectTaken(["info": value, "mode": "r"]) { victim in
        // `mode` is the toolstack's word to the backend.
        #expect(victim.status(.write, 0, 512) == (readOnly ? .readOnly : .okay))
        #expect(victim.status(.read, 0, 512) == .okay)
      }
    }
    for value in ["4294967296", "ro", "", "-4"] { try Self.expectRefused("info", value) }
  }

  @Test(arguments: ["feature-barrier", "feature-flush-cache", "feature-discard", "feature-persistent"])
  func case35_aFeatureIsZeroOrOneOrMissing(key: String) throws {
    for value in ["0", "1", nil] { try Self.expectTaken([key: value]) }
    for value in ["2", "yes", "", "01", "1\n", String(repeating: "1", count: 3900)] {
      try Self.expectRefused(key, value)
    }
  }

  @Test func case36_aDeviceThatPointsNowhereIsRefused() throws {
    for (key, value) in [
      ("backend", nil), ("backend", ""), ("backend-id", nil), ("backend-id", "32752"),
      ("backend-id", "65536"),
      ("backend-id", " 0"), ("backend-id", "-1"), ("backend-id", ""),
      ("backend", "/local/domain/0/backend/vbd/7/1"), ("backend", "no/where"), ("backend", "device/vbd"),
    ] as [(String, String?)] {
      let machine = try HostileMachine()
      let backend = try HostileBackend(machine)
      let path = machine.device.frontendPath + "/" + key
      if let value {
        try machine.toolstack.store.write(path, value)
      } else {
        try machine.toolstack.store.remove(path)
      }
      do {
        let victim = try Victim(
          again: machine, backend, options: Victim.options { $0.handshakeTimeout = .milliseconds(300) })
        victim.stop(keepsBackend: true)
        Issue.record("connected with \(key)=\(value ?? "-")")
      } catch let error as XbdError {
        #expect([.noDevice, .malformed, .backendGone, .timedOut, .system].contains(error.code), "\(error)")
      }
      backend.stop()
    }
  }

  @Test func case36_aFrontendThatIsItsOwnBackendComesToAnEnd() throws {
    let machine = try HostileMachine()
    let backend = try HostileBackend(machine)
    defer { backend.stop() }
    try machine.toolstack.store.write(machine.device.frontendPath + "/backend", machine.device.frontendPath)
    #expect(throws: XbdError.self) {
      let victim = try Victim(
        again: machine, backend, options: Victim.options { $0.handshakeTimeout = .milliseconds(300) })
      victim.stop(keepsBackend: true)
    }
  }

  @Test func case36_aBackendThatMovesWhileConnectedIsNotFollowed() throws {
    let victim = try Victim()
    let store = victim.machine.toolstack.store
    try store.write(victim.machine.device.frontendPath + "/backend", "/local/domain/0/elsewhere")
    try store.write(victim.machine.device.frontendPath + "/backend-id", "3")
    victim.run(milliseconds: 100)
    victim.expectWorking()
    victim.stop()
  }

  @Test func case37_nodesThatMayNotBeReadAreNamed() throws {
    let machine = try HostileMachine()
    let backend = try HostileBackend(machine)
    defer { backend.stop() }
    backend.follow(Plan([.denyReading]))
    do {
      let victim = try Victim(again: machine, backend)
      victim.stop(keepsBackend: true)
      Issue.record("connected")
    } catch let error as XbdError {
      #expect(error.code == .backendGone)
      #expect(error.message.contains("no state node that may be read"), "\(error)")
      #expect(error.message.contains(machine.device.backendPath), "\(error)")
    }
  }

  @Test func case37_permissionsThatVanishFailWhatIsInFlight() throws {
    // xenstore tells who loses the right to read a node; what it finds then is as good as no node.
    let victim = try Victim(Plan([.neverAnswer(every: 1)], after: 1))
    #expect(victim.status(.read, 0, 4096) == .okay)
    let tag = try #require(victim.submit(.read, 0, 4096))
    victim.run(milliseconds: 20)
    victim.backend.follow(Plan([.denyReading, .neverAnswer(every: 1)]))
    victim.run("a failed device", until: { victim.failure != nil })
    victim.run("an end of the request", until: { victim.ended[tag] != nil })
    #expect(victim.failure?.code == .backendGone)
    #expect(victim.ended[tag]?.status == .shutdown)
    victim.stop()
  }

  @Test func case37_transactionsThatConflictAreRunAgain() throws {
    let machine = try HostileMachine()
    let backend = try HostileBackend(machine)
    let stop = Locked(false)
    let written = Locked(0)
    let toolstack = machine.toolstack
    let path = machine.device.frontendPath + "/noise"
    let noise = try DedicatedThread(name: "noise") {
      while !stop.with({ $0 }) {
        try? toolstack.store.write(path, String(written.with { $0 }))
        written.with { $0 += 1 }
      }
    }
    defer {
      stop.with { $0 = true }
      noise.join()
      backend.stop()
    }
    for _ in 0..<5 {
      do {
        let victim = try Victim(again: machine, backend)
        victim.expectWorking()
        victim.stop(keepsBackend: true)
      } catch let error as XbdError {
        // A storm that never lets a transaction through ends in a sentence, not in a loop.
        #expect(error.message.contains("somebody else's changes"), "\(error)")
      }
    }
    #expect(written.with { $0 } > 10)
  }

  @Test func case37_nodesThatVanishBetweenReadsAreMissing() throws {
    let machine = try HostileMachine()
    let backend = try HostileBackend(machine)
    defer { backend.stop() }
    let stop = Locked(false)
    let toolstack = machine.toolstack
    let path = machine.device.backendPath
    let noise = try DedicatedThread(name: "noise") {
      while !stop.with({ $0 }) {
        try? toolstack.store.remove(path + "/info")
        try? toolstack.store.write(path + "/info", "0")
        try? toolstack.store.remove(path + "/feature-discard")
      }
    }
    defer {
      stop.with { $0 = true }
      noise.join()
    }
    for _ in 0..<5 {
      let victim = try Victim(again: machine, backend)
      victim.expectWorking()
      victim.stop(keepsBackend: true)
    }
  }

  @Test func case38_aStormOfWatchesCostsLittleAndTheDeviceStillWorks() throws {
    let victim = try Victim()
    victim.expectWorking()
    let thread = "xbd-\(victim.machine.device.virtualDevice)"
    let idle = Self.processorSeconds(of: thread)
    victim.backend.follow(Plan([.watchStorm]))
    let writes = victim.backend.observations.stateWrites
    let before = Self.processorSeconds(of: thread)
    let (looks, began) = (victim.looks.with { $0 }, MonotonicClock.nanoseconds())
    victim.run(milliseconds: 2000)
    // A machine that is busy with other things takes longer to make a storm of it.
    victim.run("a storm", until: { victim.backend.observations.stateWrites - writes > 1000 })
    let used = Self.processorSeconds(of: thread) - before
    let elapsed = MonotonicClock.nanoseconds() - began
    let seen = victim.looks.with { $0 } - looks
    #expect(seen <= WatchPacer.allowed(in: elapsed), "\(seen) looks")
    let stormed = victim.backend.observations.stateWrites - writes
    // Without a bound each write is some thirty round trips: the thread would have no pause at all.
    #expect(
      used < Double(elapsed) / 2e9, "\(used) s of \(elapsed) ns for \(stormed) writes, \(idle) s before")
    victim.expectWorking()
    // It is still heard, if not at once.
    victim.backend.follow(Plan())
    victim.backend.put("sectors", "4096")
    victim.backend.go(to: 4)
    // Nothing has piled up before it.
    let asked = MonotonicClock.nanoseconds()
    victim.run("the new size", until: { victim.queue.parameters.sectorCount == 4096 })
    #expect(MonotonicClock.nanoseconds() - asked < 5_000_000_000)
    victim.stop()
  }

  /// Processor time of every thread of this name, in seconds.
  static func processorSeconds(of name: String) -> Double {
    guard let directory = opendir("/proc/self/task") else { return 0 }
    defer { closedir(directory) }
    var total = 0.0
    while let entry = readdir(directory) {
      let task = withUnsafeBytes(of: &entry.pointee.d_name) {
        String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self)
      }
      guard text("/proc/self/task/\(task)/comm").hasPrefix(name + "\n") else { continue }
      // schedstat: nanoseconds on a processor first.
      total += Double(text("/proc/self/task/\(task)/schedstat").split(separator: " ").first ?? "0") ?? 0
    }
    return total / 1e9
  }

  static func text(_ path: String) -> String {
    guard let file = fopen(path, "r") else { return "" }
    defer { fclose(file) }
    var bytes = [UInt8](repeating: 0, count: 512)
    let count = fread(&bytes, 1, bytes.count, file)
    return String(decoding: bytes.prefix(count), as: UTF8.self)
  }
}
