// SPDX-License-Identifier: Apache-2.0
//
// A device whose backend means harm, and the thread that owns its queue: the test's own. Every wait has an end; a
// wait that reaches it is a hang, and a hang fails the test.

import Blkif
import CXen
import Glibc
import HostileBackend
import Logging
import Platform
import Testing
import Xen
import XenLoopback

@testable import XbdFront

/// How long anything may take that should happen at all, in seconds: for slow machines, not for slow code.
let patience = 30.0

/// A request that ended.
struct Ended {
  var status: OperationStatus
  var data: [UInt8]
  /// The request's number among those of the victim.
  var tag: UInt64
}

/// Machine, backend, device and queue owner of one test.
final class Victim {
  let machine: HostileMachine
  let backend: HostileBackend
  let frontend: LoopbackDomain
  let device: BlockDevice
  let said = Locked<[String]>([])
  /// How often the control thread has followed a watch to a backend that is connected as before.
  let looks = Locked(0)
  var queue: BlockQueue { device.queues[0] }
  private(set) var ended: [UInt64: Ended] = [:]
  private var tag: UInt64 = 0
  private var isStopped = false
  /// When the queue wants to know the time.
  private var wanted: UInt64?
  /// Operations that are not given back when they end.
  var keepsMemory = false
  private(set) var kept: [UInt64: OperationID] = [:]
  /// Whether the owner tells the queue the time.
  var keepsTime = true

  static func options(_ change: (inout FrontendOptions) -> Void = { _ in }) -> FrontendOptions {
    var options = FrontendOptions()
    options.ringPageOrder = 0
    options.poolPages = 192
    options.maxSegments = 32
    options.handshakeTimeout = .seconds(20)
    options.closeTimeout = .milliseconds(300)
    options.initialisingGrace = .milliseconds(50)
    change(&options)
    return options
  }

  /// Connects; throws what the device throws.
  init(
    _ plan: Plan = Plan(), nodes: [String: String] = [:], trusted: Bool = true, pageLimit: Int = 1024,
    diskBytes: Int = 4 << 20, options: FrontendOptions = Victim.options()
  ) throws {
    Canary.spread()
    machine = try HostileMachine(trusted: trusted, pageLimit: pageLimit)
    backend = try HostileBackend(machine, plan: plan, nodes: nodes, diskBytes: diskBytes)
    frontend = try machine.frontend()
    do {
      device = try BlockDevice.connect(
        String(machine.device.virtualDevice), on: frontend, options: options,
        logger: Self.logger(said, looks))
    } catch {
      backend.stop()
      throw error
    }
    own(device)
  }

  /// Connects once more, to a backend that is there already.
  init(
    again machine: HostileMachine, _ backend: HostileBackend, options: FrontendOptions = Victim.options()
  ) throws {
    self.machine = machine
    self.backend = backend
    frontend = try machine.frontend()
    device = try BlockDevice.connect(
      String(machine.device.virtualDevice), on: frontend, options: options, logger: Self.logger(said))
    own(device)
  }

  private func own(_ device: BlockDevice) {
    for queue in device.queues {
      queue.onCompletion = { [unowned self, unowned queue] completion in
        var data: [UInt8] = []
        if completion.status == .okay { data = contents(queue, completion.operation) }
        ended[completion.tag] = Ended(status: completion.status, data: data, tag: completion.tag)
        if keepsMemory {
          kept[completion.tag] = completion.operation
        } else {
          queue.release(completion.operation)
        }
      }
    }
  }

  deinit {
    precondition(isStopped, "a victim must be stopped")
  }

  static func logger(_ said: Locked<[String]>, _ looks: Locked<Int> = Locked(0)) -> Logger {
    Logger(label: "hostile") { _ in Listener(said: said, looks: looks) }
  }

  // MARK: The owner's thread

  /// One turn: as a worker of the NBD service takes it.
  func turn(until deadline: UInt64) {
    let moved = queue.poll()
    guard !moved, queue.armWakeup() else { return }
    let now = MonotonicClock.nanoseconds()
    if keepsTime { wanted = queue.keepTime(now) }
    let end = min(deadline, wanted ?? .max, now &+ 20_000_000)
    let rest = Int32(clamping: (end > now ? end &- now : 0) / 1_000_000 &+ 1)
    var polled = queue.descriptors.map { pollfd(fd: $0, events: Int16(POLLIN), revents: 0) }
    _ = Glibc.poll(&polled, nfds_t(polled.count), rest)
    if keepsTime { wanted = queue.keepTime(MonotonicClock.nanoseconds()) }
  }

  /// Turns until something is so.
  ///
  /// - Returns: whether it came to be in time.
  @discardableResult
  func run(
    seconds: Double = patience, _ what: String = "", until condition: () -> Bool,
    sourceLocation: SourceLocation = #_sourceLocation
  ) -> Bool {
    let deadline = MonotonicClock.nanoseconds() &+ UInt64(seconds * 1e9)
    while !condition() {
      guard MonotonicClock.nanoseconds() < deadline else {
        if !what.isEmpty { Issue.record("a hang: never \(what)", sourceLocation: sourceLocation) }
        return false
      }
      turn(until: deadline)
    }
    return true
  }

  /// Turns for a time, whatever happens.
  func run(milliseconds: Int) {
    let deadline = MonotonicClock.nanoseconds() &+ UInt64(milliseconds) * 1_000_000
    while MonotonicClock.nanoseconds() < deadline { turn(until: deadline) }
  }

  // MARK: Requests

  /// Begins, fills and submits.
  ///
  /// - Returns: the request's number; nil when there were no resources in time.
  @discardableResult
  func submit(
    _ command: BlockRequest.Command, _ offset: Int = 0, _ count: Int = 0, fua: Bool = false,
    data: [UInt8]? = nil
  ) -> UInt64? {
    tag += 1
    let request = BlockRequest(
      command: command, forceUnitAccess: fua, byteOffset: UInt64(offset), byteCount: UInt64(count))
    var operation = queue.begin(request, tag: tag)
    if operation == nil {
      run("resources for a request") {
        operation = queue.begin(request, tag: tag)
        return operation != nil
      }
    }
    guard let operation else { return nil }
    if command == .write { fill(operation, data ?? Victim.bytes(count, seed: tag)) }
    queue.submit(operation)
    return tag
  }

  /// One request from beginning to end.
  func perform(
    _ command: BlockRequest.Command, _ offset: Int = 0, _ count: Int = 0, fua: Bool = false,
    data: [UInt8]? = nil,
    sourceLocation: SourceLocation = #_sourceLocation
  ) -> Ended? {
    guard let tag = submit(command, offset, count, fua: fua, data: data) else { return nil }
    run(
      "an end of \(command) \(count) at \(offset)", until: { ended[tag] != nil },
      sourceLocation: sourceLocation)
    return ended[tag]
  }

  func status(_ command: BlockRequest.Command, _ offset: Int = 0, _ count: Int = 0, fua: Bool = false)
    -> OperationStatus?
  {
    perform(command, offset, count, fua: fua)?.status
  }

  /// Bytes below 0x80, so that they are never taken for the canary.
  static func bytes(_ count: Int, seed: UInt64) -> [UInt8] {
    [UInt8](unsafeUninitializedCapacity: count) { buffer, initialized in
      var state = seed &* 0x9E37_79B9_7F4A_7C15 | 1
      let raw = UnsafeMutableRawBufferPointer(buffer)
      for index in stride(from: 0, to: count, by: 8) {
        state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
        let word = (state >> 8 ^ state << 24) & 0x7F7F_7F7F_7F7F_7F7F
        if index + 8 <= count {
          raw.storeBytes(of: word, toByteOffset: index, as: UInt64.self)
        } else {
          for byte in index..<count {
            raw[byte] = UInt8(truncatingIfNeeded: word >> UInt64(8 * (byte - index)))
          }
        }
      }
      initialized = count
    }
  }

  private func fill(_ operation: OperationID, _ data: [UInt8]) {
    var done = 0
    for vector in memory(queue, operation) {
      guard let base = vector.iov_base, done + vector.iov_len <= data.count else { break }
      data.withUnsafeBytes { bytes in _ = bytes.baseAddress.map { memcpy(base, $0 + done, vector.iov_len) } }
      done += vector.iov_len
    }
  }

  func contents(_ queue: BlockQueue, _ operation: OperationID) -> [UInt8] {
    var bytes: [UInt8] = []
    for vector in memory(queue, operation) {
      bytes.append(contentsOf: UnsafeRawBufferPointer(start: vector.iov_base, count: vector.iov_len))
    }
    return bytes
  }

  private func memory(_ queue: BlockQueue, _ operation: OperationID) -> [iovec] {
    var result: [iovec] = []
    var offset = 0
    withUnsafeTemporaryAllocation(of: iovec.self, capacity: 64) { some in
      while case let count = queue.vectors(of: operation, from: offset, into: some), count > 0 {
        for index in 0..<count {
          result.append(some[index])
          offset += some[index].iov_len
        }
      }
    }
    return result
  }

  // MARK: What must hold

  /// The device's sentence, once it has failed.
  var failure: XbdError? { if case .failed(let error) = device.state { error } else { nil } }

  /// The device broke: with a reason, with an end for everything in flight, and for good.
  func expectBroken(
    _ reason: String, inFlight tags: [UInt64?], sourceLocation: SourceLocation = #_sourceLocation
  ) {
    let all = tags.compactMap { $0 }
    run(
      "an end of everything in flight", until: { all.allSatisfy { ended[$0] != nil } },
      sourceLocation: sourceLocation)
    run("a failed device", until: { failure != nil }, sourceLocation: sourceLocation)
    #expect(all.allSatisfy { ended[$0]?.status == .ioError }, sourceLocation: sourceLocation)
    #expect(all.allSatisfy { ended[$0]?.data.isEmpty == true }, sourceLocation: sourceLocation)
    let sentence = failure?.message ?? ""
    #expect(sentence.contains(reason), "\(sentence)", sourceLocation: sourceLocation)
    #expect(sentence.contains("is broken"), "\(sentence)", sourceLocation: sourceLocation)
    #expect(failure?.code == .violation, sourceLocation: sourceLocation)
    #expect(queue.violation != nil, sourceLocation: sourceLocation)
    #expect(queue.unfinishedOperations == 0, sourceLocation: sourceLocation)
    for command in [BlockRequest.Command.read, .write, .flush] {
      let status = status(command, 0, command == .flush ? 0 : 4096)
      #expect(status == .ioError || status == .shutdown, sourceLocation: sourceLocation)
    }
  }

  /// The device works: everything is written, read back and compared.
  func expectWorking(seed: UInt64 = 99, sourceLocation: SourceLocation = #_sourceLocation) {
    for (offset, count) in [(0, 4096), (512, 512), (65536, 131072), (4096, 45056), (700, 3000)] {
      let data = Victim.bytes(count, seed: seed &+ UInt64(offset))
      #expect(
        perform(.write, offset, count, data: data, sourceLocation: sourceLocation)?.status == .okay,
        sourceLocation: sourceLocation)
      let read = perform(.read, offset, count, sourceLocation: sourceLocation)
      #expect(read?.status == .okay, sourceLocation: sourceLocation)
      #expect(read.map { $0.data == data } == true, sourceLocation: sourceLocation)
    }
    #expect(failure == nil, sourceLocation: sourceLocation)
    #expect(queue.violation == nil, sourceLocation: sourceLocation)
  }

  /// Ends the test: the device closes in time whatever the backend does, and nothing has leaked.
  ///
  /// - Parameter keepsBackend: for a test that goes on with it, and stops it then.
  ///   Backends that scribble over their own requests have complaints that mean nothing.
  func stop(
    keepsBackend: Bool = false, complains: Bool = true, sourceLocation: SourceLocation = #_sourceLocation
  ) {
    isStopped = true
    device.close()
    run(
      "a closed device",
      until: {
        for queue in device.queues { queue.poll() }
        return device.waitUntilClosed(milliseconds: 1)
      }, sourceLocation: sourceLocation)
    #expect(queue.unfinishedOperations == 0, sourceLocation: sourceLocation)
    backend.perform { $0.scan() }
    if !keepsBackend { backend.stop() }
    let seen = backend.observations
    #expect(seen.leaks.isEmpty, "\(Set(seen.leaks))", sourceLocation: sourceLocation)
    #expect(
      !complains || seen.complaints.isEmpty, "\(seen.complaints.prefix(5))", sourceLocation: sourceLocation)
  }
}

/// Connects to a device that should not be had.
///
/// - Returns: how it was refused; nil when it was not.
func refusal(
  _ plan: Plan, nodes: [String: String] = [:], options: FrontendOptions = Victim.options()
) throws -> XbdError? {
  do {
    let victim = try Victim(plan, nodes: nodes, options: options)
    victim.stop()
    return nil
  } catch let error as XbdError {
    return error
  }
}

/// Fills memory that will be used again with bytes that no backend may ever see.
enum Canary {
  static func spread() {
    var blocks: [UnsafeMutableRawPointer] = []
    for size in [4096, 8192, 65536, 131072, 262144, 4096, 65536] {
      var raw: UnsafeMutableRawPointer?
      guard posix_memalign(&raw, 4096, size) == 0, let block = raw else { continue }
      HostileBackend.canary.withUnsafeBytes { bytes in
        for offset in stride(from: 0, to: size, by: 8) {
          _ = bytes.baseAddress.map { memcpy(block + offset, $0, 8) }
        }
      }
      blocks.append(block)
    }
    for block in blocks { free(block) }
  }
}

/// Keeps what the device says.
struct Listener: LogHandler {
  let said: Locked<[String]>
  let looks: Locked<Int>
  var logLevel = Logger.Level.debug
  var metadata = Logger.Metadata()
  init(said: Locked<[String]>, looks: Locked<Int>) {
    self.said = said
    self.looks = looks
  }
  subscript(metadataKey key: String) -> Logger.Metadata.Value? {
    get { metadata[key] }
    set { metadata[key] = newValue }
  }
  func log(event: LogEvent) {
    // The control thread says each of its actions.
    guard event.level >= .info else {
      if "\(event.message)".hasSuffix("rereadSize") { looks.with { $0 += 1 } }
      return
    }
    said.with { if $0.count < 10_000 { $0.append("\(event.message)") } }
  }
}

/// Processor time of this thread, in seconds.
func threadSeconds() -> Double {
  var time = timespec()
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time)
  return Double(time.tv_sec) + Double(time.tv_nsec) / 1e9
}
