// SPDX-License-Identifier: Apache-2.0
//
// The real frontend and a profile of the reference backend on a loopback host of their own: xenstore over its socket,
// grants really mapped, event channels on eventfds. The test's thread owns the queues.

import Blkif
import Glibc
import Logging
import Platform
import TestSupport
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

/// Every profile with every driving: what a test of a property runs over.
struct Setting: CustomStringConvertible, Sendable {
  let profile: BackendProfile
  let driving: Driving
  var description: String { "\(profile.rawValue), \(driving)" }
  static let all = BackendProfile.allCases.flatMap { profile in
    Driving.allCases.map { Setting(profile: profile, driving: $0) }
  }
}

final class Pair {
  let profile: BackendProfile
  let disk: GatedStorage
  let driving: Driving
  let host: LoopbackHost
  let toolstack: LoopbackToolstack
  let nodes: LoopbackBlockDevice
  let system: LoopbackDomain
  // What changes when a backend is followed by another (Pair+Life.swift).
  private(set) var served: BackendDevice
  private(set) var backend: Backend
  private(set) var process: MortalSystem
  private(set) var device: BlockDevice?
  // Requests (Pair+Requests.swift).
  let ledger = Ledger()
  var operations: [UInt64: (BlockQueue, OperationID)] = [:]

  static let quiet = Logger(label: "quiet") { _ in SwiftLogNoOpLogHandler() }

  convenience init(
    _ setting: Setting, byteCount: UInt64 = 4 << 20, _ change: (inout BackendConfiguration) -> Void = { _ in }
  )
    throws
  {
    try self.init(setting.profile, setting.driving, byteCount: byteCount, change)
  }

  init(
    _ profile: BackendProfile, _ driving: Driving = .inline, byteCount: UInt64 = 4 << 20,
    _ change: (inout BackendConfiguration) -> Void = { _ in }
  ) throws {
    self.profile = profile
    self.driving = driving
    let path = try makeTemporaryPath("pair")
    host = try LoopbackHost(directory: path)
    toolstack = try LoopbackToolstack(directory: path)
    try toolstack.createDomain(DomainID(1))
    var nodes = LoopbackBlockDevice(virtualDevice: 51712, name: "xvda", frontend: DomainID(1))
    nodes.kind = profile.kind
    try toolstack.attach(nodes)
    self.nodes = nodes
    disk = try GatedStorage(byteCount: byteCount)
    system = try LoopbackDomain(joining: path, domain: DomainID(1))
    var configuration = BackendConfiguration.profile(profile)
    change(&configuration)
    (process, backend, served) = try Self.start(path, nodes, disk, configuration, driving)
  }

  deinit {
    disk.open()
    close()
    backend.stop()
    host.stop()
  }

  private static func start(
    _ path: String, _ nodes: LoopbackBlockDevice, _ disk: GatedStorage, _ configuration: BackendConfiguration,
    _ driving: Driving
  ) throws -> (MortalSystem, Backend, BackendDevice) {
    let process = MortalSystem(try LoopbackDomain(joining: path, domain: .dom0))
    let backend = try Backend(system: process, logger: quiet)
    var configuration = configuration
    configuration.execution = driving == .inline ? .colocated : .ownThread
    let served = try backend.add(directory: nodes.backendPath, storage: disk, configuration: configuration)
    return (process, backend, served)
  }

  /// Starts a backend in the place of one that has ended.
  func startBackend(_ configuration: BackendConfiguration) throws {
    (process, backend, served) = try Self.start(host.directory, nodes, disk, configuration, driving)
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
    for (index, queue) in device.queues.enumerated() {
      attach(queue, index)
      queue.onCompletion = { [ledger] in ledger.complete($0) }
      queue.onReconnect = { [weak self, unowned queue] in self?.attach(queue, index) }
    }
    return device
  }

  /// Waits for the backend to have a queue's ring, and runs it on this thread if it is to be there.
  private func attach(_ queue: BlockQueue, _ index: Int) {
    guard served.waitForQueues(index + 1, milliseconds: 30_000) else {
      Issue.record("\(profile): the backend has not attached ring \(index)")
      return
    }
    guard driving == .inline else { return }
    guard let colocated = served.colocatedQueue(index) else {
      Issue.record("\(profile): there is no queue \(index)")
      return
    }
    queue.runInline(Inline(colocated))
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
    let isClosed = turn { device.waitUntilClosed(milliseconds: 0) }
    #expect(isClosed, "\(profile)")
    forgetDevice()
    expectNoRudeGuest()
  }

  /// Lets go of a device that is closed, and of its queues with their pages.
  func forgetDevice() {
    pollAll()
    ledger.close("\(profile)")
    operations = [:]
    device = nil
  }

  /// What no test's requests may have done to a backend: quirks 12, 13 and 25 cost it time, mappings and in the end its
  /// life.
  func expectNoRudeGuest() {
    let statistics = served.statistics
    #expect(statistics.unevenRequests == 0, "Q12, \(profile)")
    #expect(statistics.grantsInUseAgain == 0, "Q13, \(profile)")
    #expect(statistics.lostRequests == 0, "Q25, \(profile)")
  }

  func node(_ key: String) throws -> String? { try toolstack.store.read("\(nodes.backendPath)/\(key)") }
  func frontNode(_ key: String) throws -> String? { try toolstack.store.read("\(nodes.frontendPath)/\(key)") }
  func detach() throws { try toolstack.detach(nodes) }

  // MARK: Turns

  /// Has each queue hear what the control thread has told it.
  func pollAll() {
    for queue in device?.queues ?? [] { queue.poll() }
  }

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
        _ = queue.keepTime(MonotonicClock.nanoseconds())
        if !queue.armWakeup() { mayWait = false }
        looks += queue.descriptors.map { pollfd(fd: $0, events: Int16(POLLIN), revents: 0) }
      }
      // Conditions may be about the other end, which wakes nobody here.
      if mayWait { _ = Glibc.poll(&looks, UInt(looks.count), 5) }
      for queue in device.queues { _ = queue.keepTime(MonotonicClock.nanoseconds()) }
    }
    return true
  }
}

/// Which operations were submitted, and how they ended: each once.
final class Ledger {
  private(set) var ended: [UInt64: OperationStatus] = [:]
  /// Submitted, and not reported yet.
  private(set) var open: Set<UInt64> = []
  private var nextTag: UInt64 = 0

  /// Takes a number for a request that is about to be submitted.
  func takeTag() -> UInt64 {
    nextTag += 1
    open.insert(nextTag)
    return nextTag
  }

  /// Gives a number back that was not submitted.
  func forget(_ tag: UInt64) { open.remove(tag) }

  /// Takes note of the end of an operation.
  func complete(_ completion: Completion) {
    #expect(open.remove(completion.tag) != nil, "operation \(completion.tag) was reported twice")
    ended[completion.tag] = completion.status
  }

  /// Takes out how an operation ended.
  func take(_ tag: UInt64) -> OperationStatus? { ended.removeValue(forKey: tag) }

  /// Nobody polls any more: what is open now is never reported.
  func close(_ whose: String) {
    #expect(open.isEmpty, "\(whose): \(open.count) operations were never reported")
    open = []
    ended = [:]
  }
}
