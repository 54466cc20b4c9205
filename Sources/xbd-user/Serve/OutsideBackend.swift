// SPDX-License-Identifier: Apache-2.0
//
// `serve --loopback IMAGE --backend …`: a loopback host in this process, and a backend that is a process of its own:
// QEMU's under the drop-in, the reference backend, or whatever the user starts.

import ArgumentParser
import Blkif
import Glibc
import Platform
import XbdBack
import XbdFront
import Xen
import XenLoopback

/// Which backend serves the image.
enum BackendChoice: String, ExpressibleByArgument, CaseIterable {
  case reference
  case process
  case qemu
  case none
}

/// The device and whoever serves it.
final class OutsideBackend {
  private let host: LoopbackHost
  private let toolstack: LoopbackToolstack
  private let nodes: LoopbackBlockDevice
  private let disk: QEMUDisk?
  /// The command of the process that serves it; nil when the user starts one.
  private let command: [String]?
  /// What the first of them takes besides: no other may make an image of nothing where the one that was served is gone.
  private var creation: [String] = []
  private let name: String
  private var helper: HelperProcess?
  /// Tells of a backend whose process has left the host.
  private let lost: LostBackend
  /// A backend has died and is to be followed by another one; not before this time.
  private var replacementDue: UInt64?
  /// The nodes are ready for it.
  private var isReplacementReady = false
  /// Xen as the frontend's domain sees it.
  let frontend: any XenSystem

  /// Starts the host and the backend, and waits until it has published what it can.
  ///
  /// - Throws: `ExitCode` when a signal ends the waiting.
  init(
    _ choice: BackendChoice, directory: String, image: String, readOnly: Bool, queues: Int,
    storage: StorageArguments, pageLimit: Int, timeout: Double, reconnects: Bool,
    signals: borrowing Signals
  ) throws {
    let lost = try LostBackend()
    self.lost = lost
    host = try LoopbackHost(directory: directory) { ended, peer in
      if ended == .dom0, peer == loopbackFrontend { lost.counter.signal() }
    }
    toolstack = try LoopbackToolstack(directory: host.directory)
    try toolstack.createDomain(loopbackFrontend, pageLimit: pageLimit)
    frontend = try LoopbackDomain(joining: host.directory, domain: loopbackFrontend)
    var nodes = LoopbackBlockDevice(
      virtualDevice: EmbeddedLoopback.device.number, name: EmbeddedLoopback.device.name ?? "",
      frontend: loopbackFrontend)
    nodes.isReadOnly = readOnly
    nodes.parameters = image
    let own = "/proc/self/exe"
    switch choice {
    case .reference, .process:
      name = "the backend's process"
      disk = nil
      nodes.kind = storage.profile?.kind ?? nodes.kind
      command =
        [own, "backend", image, "--loopback", host.directory, "--device", "\(nodes.virtualDevice)"]
        + ["--max-queues", "\(queues)", "--with-parent"] + (readOnly ? ["--read-only"] : [])
        + storage.behaviour
      creation = storage.creation
    case .qemu:
      guard access(QEMUDisk.program, X_OK) == 0 else {
        throw Failure("\(QEMUDisk.program) is missing: install the package qemu-system-xen")
      }
      _ = try DropIn.library()
      name = "QEMU's backend"
      nodes.kind = "qdisk"
      nodes.type = "qdisk"
      let disk = try QEMUDisk(
        image, storage, readOnly: readOnly, locking: true, outlivesQEMU: reconnects)
      nodes.parameters = disk.parameters
      self.disk = disk
      if !disk.isAttachedByQEMU { try toolstack.attach(nodes) }
      command =
        [own, "loopback", "exec", "--with-parent", host.directory, "--"]
        + disk.command(domain: loopbackFrontend.rawValue, vdev: nodes.name)
    case .none:
      name = "the backend"
      command = nil
      nodes.kind = "qdisk"
      nodes.type = "qdisk"
      if QEMUDisk.namesFormat(image) {
        try QEMUDisk.refuseSize(storage, of: image)
      } else {
        nodes.parameters = try QEMUDisk(image, storage, readOnly: readOnly, locking: false).parameters
      }
      disk = nil
      try toolstack.attach(nodes)
    }
    self.nodes = nodes
    do {
      try start()
      try wait(signals, seconds: command == nil ? nil : timeout)
      helper?.showOutput()
    } catch {
      helper?.end(milliseconds: 2000)
      host.stop()
      throw error
    }
  }

  /// Starts the backend's process, or tells the user how to.
  private func start() throws {
    if let command {
      helper = try HelperProcess(name, command + creation)
      creation = []
      return
    }
    let variables = try DropIn.variables(
      DropIn.library(), LoopbackDomain(joining: host.directory, domain: .dom0))
    Console.note(
      """
      waiting for a backend on \(nodes.backendPath), params \(nodes.parameters)
      start one as domain 0 with
        xbd-user loopback exec \(host.directory) -- PROGRAM
      or in this environment
      \(variables.map { "  \($0.0)=\($0.1)" }.joined(separator: "\n"))
      """)
  }

  /// Ends backend and host.
  ///
  /// After the frontend has closed.
  func stop() {
    helper?.end(milliseconds: 5000)
    host.stop()
  }

  // MARK: A backend's death

  /// Readable when a backend may have ended: `takeDeath` knows.
  var lostDescriptor: Int32 { lost.counter.fileDescriptor }

  /// Readable when the backend's program, if it is ours, has ended or is about to.
  var endDescriptor: Int32? { helper?.endDescriptor }

  /// Looks whether the backend's program has ended.
  ///
  /// - Parameter milliseconds: how long to wait for that.
  /// - Returns: a sentence about how; nil while it runs.
  func takeDeath(within milliseconds: Int = 0) -> String? {
    // Taken whoever the backend is: it would be readable for ever.
    let isLost = lost.counter.drain()
    if command == nil { return isLost ? "the backend's process has ended" : nil }
    guard let sentence = helper?.ended(within: milliseconds) else { return nil }
    helper = nil
    return sentence
  }

  /// Has another backend take its place as soon as the frontend has let go of the ring.
  func replace() { replacementDue = MonotonicClock.nanoseconds() }

  /// Whether `replaceIfPossible` should be called again soon.
  var isBeingReplaced: Bool { replacementDue != nil }

  /// Makes the nodes ready for another backend and starts it, or has the user start it: each when it is time.
  func replaceIfPossible(on device: BlockDevice) throws {
    guard let due = replacementDue, MonotonicClock.nanoseconds() >= due else { return }
    func state() throws -> String? { try toolstack.store.read(nodes.frontendPath + "/state") }
    if !isReplacementReady {
      // While the nodes name a ring, a new backend would serve it: requests of long ago, from pages used anew.
      guard let state = try state(), ["1", "6"].contains(state) else { return }
      try makeNodesReady()
      isReplacementReady = true
      device.backendReplaced()
    }
    // NetBSD's and MirageOS's are gone for good when they find a frontend at 6.
    guard try state() == "1" else { return }
    isReplacementReady = false
    replacementDue = nil
    try start()
    helper?.showOutput()
  }

  private func makeNodesReady() throws {
    if disk?.isAttachedByQEMU == true {
      // QEMU writes the nodes by itself, and would attach a second disk to nodes in state 1. They stay, as nodes that
      // it makes anew cannot be read by the frontend at first.
      try toolstack.store.write("\(nodes.backendPath)/state", "6")
    } else {
      try toolstack.renewBackend(nodes)
    }
  }

  /// A replacement that died at once is followed by the next in a moment.
  func replaceLater() { replacementDue = MonotonicClock.nanoseconds() &+ 1_000_000_000 }

  /// Waits until the backend has published what it can.
  private func wait(_ signals: borrowing Signals, seconds: Double?) throws {
    var left = seconds.map { Int($0 * 10) }
    var look = pollfd(fd: signals.fileDescriptor, events: Int16(POLLIN), revents: 0)
    let path = "\(nodes.backendPath)/state"
    // A backend that stays at Initialising for its frontend has published its size by then.
    func isReady() throws -> Bool {
      let state = try toolstack.store.read(path)
      return try state == "2" || state == "4"
        || toolstack.store.read("\(nodes.backendPath)/\(Key.sectors)") != nil
    }
    while try !isReady() {
      if let sentence = helper?.ended() {
        helper = nil
        throw Failure("\(sentence); it has served nothing")
      }
      // QEMU lives on without the disk that it could not open.
      if let line = helper?.said("failed to create 'qdisk' device") {
        throw Failure("QEMU cannot serve \(disk?.path ?? nodes.parameters): \(line)")
      }
      guard left != 0 else {
        let state = try toolstack.store.read(path) ?? "no state"
        let words = helper?.lastWords ?? ""
        throw Failure(
          "\(name) has not opened the disk: \(path) is \(state), not 2" + (words.isEmpty ? "" : ": \(words)"))
      }
      left = left.map { $0 - 1 }
      _ = poll(&look, 1, 100)
      if let exit = signals.nextEnd() { throw exit }
    }
  }
}

/// What the host's thread signals.
private final class LostBackend: Sendable {
  let counter: EventCounter

  init() throws {
    counter = try EventCounter()
  }
}
