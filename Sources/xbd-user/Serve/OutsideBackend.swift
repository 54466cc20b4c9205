// SPDX-License-Identifier: Apache-2.0
//
// `serve --loopback IMAGE --backend …`: a loopback host in this process, and a backend that is a process of its own:
// QEMU's under the drop-in, the reference backend, or whatever the user starts.

import ArgumentParser
import Blkif
import Glibc
import Platform
import XenLoopback
import Xen

/// Which backend serves the image.
enum BackendChoice: String, ExpressibleByArgument, CaseIterable {
  case reference
  case process
  case qemu
  case none
}

/// The device and whoever serves it.
final class OutsideBackend {
  /// QEMU with nothing but a Xen machine's backends, as Debian's qemu-system-xen installs it.
  static let qemu = "/usr/libexec/xen-qemu-system-i386"

  private let choice: BackendChoice
  private let host: LoopbackHost
  private let toolstack: LoopbackToolstack
  private let nodes: LoopbackBlockDevice
  /// The program and its arguments; empty when the user starts it.
  private let command: [String]
  private var child: ChildCommand?
  /// Tells of a user's backend that has ended.
  private let lost: LostBackend
  /// A backend has died and is to be followed by another one; not before this time.
  private var replacementDue: UInt64?
  /// Xen as the frontend's domain sees it.
  let frontend: any XenSystem

  /// Starts the host and the backend, and waits until it has published what it can.
  ///
  /// - Throws: `ExitCode` when a signal ends the waiting.
  init(
    _ choice: BackendChoice, directory: String, image: String, readOnly: Bool, queues: Int,
    storage: StorageArguments, pageLimit: Int, timeout: Double, signals: borrowing Signals
  ) throws {
    self.choice = choice
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
    let exec = [own, "loopback", "exec", "--with-parent", host.directory, "--"]
    switch choice {
    case .reference, .process:
      command =
        [own, "backend", image, "--loopback", host.directory, "--device", "\(nodes.virtualDevice)"]
        + ["--max-queues", "\(queues)", "--with-parent"] + (readOnly ? ["--read-only"] : [])
        + storage.commandLine
    case .qemu:
      guard access(Self.qemu, X_OK) == 0 else {
        throw Failure("\(Self.qemu) is missing: install the package qemu-system-xen")
      }
      _ = try DropIn.library()
      nodes.kind = "qdisk"
      nodes.type = "qdisk"
      nodes.parameters = try Self.qemuParameters(image, storage, readOnly)
      command =
        exec + [
          Self.qemu, "-M", "xenpv", "-xen-attach", "-xen-domid", "\(loopbackFrontend)", "-nographic",
          "-nodefaults", "-no-user-config", "-monitor", "none", "-serial", "none", "-parallel", "none",
        ]
    case .none:
      command = []
      nodes.kind = "qdisk"
      nodes.type = "qdisk"
      if !image.contains(":") { nodes.parameters = try Self.qemuParameters(image, storage, readOnly) }
    }
    self.nodes = nodes
    // The reference backend attaches its device by itself.
    if nodes.kind == "qdisk" { try toolstack.attach(nodes) }
    if choice == .none { try explain() }
    try start()
    do {
      try wait(signals, seconds: child == nil ? nil : timeout)
    } catch {
      child?.end(milliseconds: 2000)
      host.stop()
      throw error
    }
  }

  private func start() throws {
    guard !command.isEmpty else { return }
    child = try ChildCommand(command, environment: ChildCommand.environment(adding: []), asHelper: true)
  }

  private func explain() throws {
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
    child?.end(milliseconds: 5000)
    host.stop()
  }

  // MARK: A backend's death

  /// Readable when a backend that the user started has ended.
  var lostDescriptor: Int32 { lost.counter.fileDescriptor }

  /// Looks whether the backend's program has ended.
  ///
  /// - Returns: a sentence about how; nil while it runs.
  func takeDeath() -> String? {
    if command.isEmpty { return lost.counter.drain() ? "the backend's process has ended" : nil }
    guard let status = child?.exitStatus() else { return nil }
    child = nil
    let how = status > 128 ? "was killed by signal \(status - 128)" : "has ended with status \(status)"
    return "the backend's program (\(choice == .qemu ? "QEMU" : "xbd-user backend")) \(how)"
  }

  /// Has another backend take its place as soon as the frontend has let go of the ring.
  func replace() { replacementDue = MonotonicClock.nanoseconds() }

  /// Whether `replaceIfPossible` should be called again soon.
  var isBeingReplaced: Bool { replacementDue != nil }

  /// Starts another backend, or makes the device ready for the one that the user starts, if it is time.
  func replaceIfPossible() throws {
    guard let due = replacementDue, MonotonicClock.nanoseconds() >= due else { return }
    // While the nodes name a ring, a new backend would serve it: requests of long ago, from pages used anew.
    guard let state = try toolstack.store.read(nodes.frontendPath + "/state"), ["1", "6"].contains(state)
    else { return }
    replacementDue = nil
    try toolstack.renewBackend(nodes)
    if command.isEmpty { try explain() }
    try start()
  }

  /// A replacement that died at once is followed by the next in a moment.
  func replaceLater() { replacementDue = MonotonicClock.nanoseconds() &+ 1_000_000_000 }

  private func wait(_ signals: borrowing Signals, seconds: Double?) throws {
    var left = seconds.map { Int($0 * 10) }
    var look = pollfd(fd: signals.fileDescriptor, events: Int16(POLLIN), revents: 0)
    let path = nodes.backendPath
    while try toolstack.store.read("\(path)/state") != "2" {
      if let status = child?.exitStatus() {
        throw Failure("the backend ended with status \(status) before it served anything")
      }
      guard left != 0 else { throw Failure("the backend has not opened the disk: \(path)/state is not 2") }
      left = left.map { $0 - 1 }
      _ = poll(&look, 1, 100)
      while let signal = signals.next() {
        if signal != SIGCHLD && signal != SIGUSR1 { throw ExitCode(128 + signal) }
      }
    }
  }

  /// "format:path" as libxl writes it for QEMU; the format is looked for in the file unless it is given.
  private static func qemuParameters(
    _ image: String, _ storage: StorageArguments, _ readOnly: Bool
  ) throws -> String {
    for kind in ["memory:", "null:"] where image.hasPrefix(kind) {
      throw Failure("QEMU's backend serves image files; \"\(image)\" is for the reference backend")
    }
    if let colon = image.firstIndex(of: ":"), !image[..<colon].contains("/") { return image }
    if storage.size != nil { _ = try storage.open(image, readOnly: readOnly) }
    let file = open(image, O_RDONLY | O_CLOEXEC)
    guard file >= 0 else { throw Failure("cannot open \(image): \(String(cString: strerror(errno)))") }
    defer { close(file) }
    var magic: [UInt8] = [0, 0, 0, 0]
    let isQcow2 = read(file, &magic, 4) == 4 && magic == [0x51, 0x46, 0x49, 0xFB]
    guard let resolved = realpath(image, nil) else { throw Failure("cannot find \(image)") }
    defer { free(resolved) }
    return (isQcow2 ? "qcow2:" : "raw:") + String(cString: resolved)
  }
}

/// What the host's thread signals.
private final class LostBackend: Sendable {
  let counter: EventCounter

  init() throws {
    counter = try EventCounter()
  }
}
