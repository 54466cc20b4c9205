// SPDX-License-Identifier: Apache-2.0
//
// The real frontend and a profile of the reference backend on a loopback host of their own: xenstore over its socket,
// grants really mapped, event channels on eventfds. The test's thread owns the queues.

import TestSupport
import Blkif
import Glibc
import Logging
import Platform
import Testing
import XbdBack
import XbdFront
import Xen
import XenLoopback

/// Something that a test needs and did not get.
struct PairFailure: Error, CustomStringConvertible {
  let description: String
}

/// How a backend's queues are run.
enum Driving: CaseIterable {
  /// On the frontend's thread, without events.
  case inline
  /// On threads of their own.
  case threads
}

final class Pair {
  let profile: BackendProfile
  let storage: MemoryStorage
  let served: BackendDevice
  private let driving: Driving
  private let host: LoopbackHost
  private let toolstack: LoopbackToolstack
  private let nodes: LoopbackBlockDevice
  private let backend: Backend
  private let system: LoopbackDomain
  private(set) var device: BlockDevice?
  private var ended: [UInt64: OperationStatus] = [:]
  private var operations: [UInt64: OperationID] = [:]
  private var nextTag: UInt64 = 0

  static let quiet = Logger(label: "quiet") { _ in SwiftLogNoOpLogHandler() }

  init(
    _ profile: BackendProfile, _ driving: Driving = .inline, byteCount: UInt64 = 4 << 20,
    _ change: (inout BackendConfiguration) -> Void = { _ in }
  ) throws {
    self.profile = profile
    self.driving = driving
    let path = try makeTemporaryDirectory("pair")
    host = try LoopbackHost(directory: path)
    toolstack = try LoopbackToolstack(directory: path)
    try toolstack.createDomain(DomainID(1))
    var nodes = LoopbackBlockDevice(virtualDevice: 51712, name: "xvda", frontend: DomainID(1))
    nodes.kind = profile.kind
    try toolstack.attach(nodes)
    self.nodes = nodes
    backend = try Backend(system: LoopbackDomain(joining: path, domain: .dom0), logger: Self.quiet)
    storage = try MemoryStorage(byteCount: byteCount)
    var configuration = BackendConfiguration.profile(profile)
    configuration.execution = driving == .inline ? .colocated : .ownThread
    change(&configuration)
    served = try backend.add(directory: nodes.backendPath, storage: storage, configuration: configuration)
    system = try LoopbackDomain(joining: path, domain: DomainID(1))
  }

  deinit {
    close()
    backend.stop()
    host.stop()
    _ = rmdir(host.directory)
  }

  static var options: FrontendOptions {
    var options = FrontendOptions()
    // For the backends that wait for the frontend.
    options.initialisingGrace = .milliseconds(100)
    return options
  }

  /// Connects and lets the backend run where it should.
  @discardableResult
  func connect(_ options: FrontendOptions = Pair.options) throws -> BlockDevice {
    let device = try BlockDevice.connect("xvda", on: system, options: options, logger: Self.quiet)
    self.device = device
    guard served.waitForQueues(device.queues.count, milliseconds: 30_000) else {
      throw PairFailure(description: "\(profile): the backend has not attached the rings")
    }
    for (index, queue) in device.queues.enumerated() {
      if driving == .inline {
        guard let colocated = served.colocatedQueue(index) else {
          throw PairFailure(description: "no queue \(index)")
        }
        queue.runInline(Inline(colocated))
      }
      queue.onCompletion = { [unowned self] in ended[$0.tag] = $0.status }
    }
    return device
  }

  private final class Inline: InlineBackend {
    let queue: ColocatedQueue
    init(_ queue: ColocatedQueue) { self.queue = queue }
    func run() -> Bool { queue.run() }
    var wakeDescriptor: Int32 { queue.wakeDescriptor }
  }

  /// Closes in order, as the owner of the queues would.
  func close() {
    guard let device else { return }
    device.close()
    turn { device.waitUntilClosed(milliseconds: 0) }
    self.device = nil
    expectNoRudeGuest()
  }

  /// What no test's requests may have done to a backend: quirks 12, 13 and 25 cost it time, mappings and in the end its
  /// life.
  private func expectNoRudeGuest() {
    let statistics = served.statistics
    #expect(statistics.unevenRequests == 0, "Q12, \(profile)")
    #expect(statistics.grantsInUseAgain == 0, "Q13, \(profile)")
    #expect(statistics.lostRequests == 0, "Q25, \(profile)")
  }

  func node(_ key: String) throws -> String? { try toolstack.store.read("\(nodes.backendPath)/\(key)") }
  func frontNode(_ key: String) throws -> String? { try toolstack.store.read("\(nodes.frontendPath)/\(key)") }
  func detach() throws { try toolstack.detach(nodes) }

  // MARK: Requests

  /// Runs the queues until something has come true, for half a minute at most.
  @discardableResult
  func turn(until condition: () -> Bool) -> Bool {
    let deadline = MonotonicClock.nanoseconds() + 30_000_000_000
    while !condition() {
      guard MonotonicClock.nanoseconds() < deadline, let device else { return condition() }
      var progress = false
      for queue in device.queues where queue.poll() { progress = true }
      if progress || condition() { continue }
      var looks: [pollfd] = []
      var mayWait = true
      for queue in device.queues {
        if !queue.armWakeup() { mayWait = false }
        looks += queue.descriptors.map { pollfd(fd: $0, events: Int16(POLLIN), revents: 0) }
      }
      if mayWait { _ = Glibc.poll(&looks, UInt(looks.count), 20) }
    }
    return true
  }

  /// Begins a request, with data for a write.
  ///
  /// - Returns: its tag.
  func start(
    _ command: BlockRequest.Command, _ offset: Int = 0, _ count: Int = 0, data: [UInt8] = [],
    fua: Bool = false,
    queue index: Int = 0
  ) throws -> UInt64 {
    guard let device else { throw PairFailure(description: "not connected") }
    let queue = device.queues[index]
    nextTag += 1
    let tag = nextTag
    let request = BlockRequest(
      command: command, forceUnitAccess: fua, byteOffset: UInt64(offset), byteCount: UInt64(count))
    var operation: OperationID?
    guard
      turn(until: {
        operation = queue.begin(request, tag: tag)
        return operation != nil
      }), let operation
    else { throw PairFailure(description: "\(profile): no room for a request of \(count) bytes") }
    if command == .write { copy(operation, queue, data, nil) }
    operations[tag] = operation
    queue.submit(operation)
    return tag
  }

  /// Waits for a request.
  ///
  /// - Parameter count: the bytes of a read.
  func finish(_ tag: UInt64, reading count: Int = 0, queue index: Int = 0) throws -> (
    OperationStatus, [UInt8]
  ) {
    guard turn(until: { ended[tag] != nil }), let status = ended.removeValue(forKey: tag), let device,
      let operation = operations.removeValue(forKey: tag)
    else { throw PairFailure(description: "\(profile): no answer") }
    let queue = device.queues[index]
    var bytes: [UInt8] = []
    if count > 0, status == .okay {
      bytes = [UInt8](repeating: 0, count: count)
      bytes.withUnsafeMutableBytes { copy(operation, queue, [], $0) }
    }
    queue.release(operation)
    return (status, bytes)
  }

  /// Does a request and waits for it.
  func perform(
    _ command: BlockRequest.Command, _ offset: Int = 0, _ count: Int = 0, data: [UInt8] = [],
    fua: Bool = false,
    queue: Int = 0
  ) throws -> OperationStatus {
    try finish(
      start(command, offset, command == .write ? data.count : count, data: data, fua: fua, queue: queue),
      queue: queue
    ).0
  }

  func read(_ offset: Int, _ count: Int, queue: Int = 0) throws -> [UInt8] {
    let (status, bytes) = try finish(start(.read, offset, count, queue: queue), reading: count, queue: queue)
    guard status == .okay else { throw PairFailure(description: "\(profile): a read ended with \(status)") }
    return bytes
  }

  private func copy(
    _ operation: OperationID, _ queue: BlockQueue, _ source: [UInt8],
    _ destination: UnsafeMutableRawBufferPointer?
  ) {
    let total = destination?.count ?? source.count
    var done = 0
    withUnsafeTemporaryAllocation(of: iovec.self, capacity: 16) { vectors in
      while done < total {
        let count = queue.vectors(of: operation, from: done, into: vectors)
        if count == 0 { return }
        for vector in vectors.prefix(count) {
          guard let base = vector.iov_base else { return }
          if let destination, let start = destination.baseAddress {
            memcpy(start + done, base, vector.iov_len)
          } else {
            source.withUnsafeBytes { bytes in
              if let start = bytes.baseAddress { memcpy(base, start + done, vector.iov_len) }
            }
          }
          done += vector.iov_len
        }
      }
    }
  }
}

/// Bytes that differ from place to place.
func pattern(_ count: Int, _ seed: UInt64) -> [UInt8] {
  var generator = SeededGenerator(seed: seed)
  return [UInt8](unsafeUninitializedCapacity: (count + 7) / 8 * 8) { buffer, length in
    let raw = UnsafeMutableRawBufferPointer(buffer)
    for index in stride(from: 0, to: raw.count, by: 8) {
      raw.storeBytes(of: generator.next(), toByteOffset: index, as: UInt64.self)
    }
    length = count
  }
}
