// SPDX-License-Identifier: Apache-2.0
//
// `serve --loopback IMAGE --backend …`: a loopback host in this process, and a backend that is a process of its own:
// QEMU's under the drop-in, the reference backend, or whatever the user starts.

import ArgumentParser
import Blkif
import Glibc
import XbdBack
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

  private let host: LoopbackHost
  private let child: ChildCommand?
  /// Xen as the frontend's domain sees it.
  let frontend: any XenSystem

  /// Starts the host and the backend, and waits until it has published what it can.
  ///
  /// - Throws: `ExitCode` when a signal ends the waiting.
  init(
    _ choice: BackendChoice, directory: String, image: String, readOnly: Bool, queues: Int,
    storage: StorageArguments, pageLimit: Int, timeout: Double, signals: borrowing Signals
  ) throws {
    host = try LoopbackHost(directory: directory)
    let toolstack = try LoopbackToolstack(directory: host.directory)
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
      nodes.kind = storage.profile?.kind ?? nodes.kind
      child = try ChildCommand(
        [own, "backend", image, "--loopback", host.directory, "--device", "\(nodes.virtualDevice)"]
          + ["--max-queues", "\(queues)", "--with-parent"] + (readOnly ? ["--read-only"] : [])
          + storage.commandLine,
        environment: ChildCommand.environment(adding: []), asHelper: true)
    case .qemu:
      guard access(Self.qemu, X_OK) == 0 else {
        throw Failure("\(Self.qemu) is missing: install the package qemu-system-xen")
      }
      _ = try DropIn.library()
      nodes.kind = "qdisk"
      nodes.type = "qdisk"
      nodes.parameters = try Self.qemuParameters(image, storage, readOnly)
      try toolstack.attach(nodes)
      child = try ChildCommand(
        exec + [
          Self.qemu, "-M", "xenpv", "-xen-attach", "-xen-domid", "\(loopbackFrontend)", "-nographic",
          "-nodefaults", "-no-user-config", "-monitor", "none", "-serial", "none", "-parallel", "none",
        ], environment: ChildCommand.environment(adding: []), asHelper: true)
    case .none:
      child = nil
      nodes.kind = "qdisk"
      nodes.type = "qdisk"
      if !image.contains(":") { nodes.parameters = try Self.qemuParameters(image, storage, readOnly) }
      try toolstack.attach(nodes)
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
    do {
      try Self.wait(
        for: nodes.backendPath, toolstack.store, child, signals, seconds: child == nil ? nil : timeout)
    } catch {
      child?.end(milliseconds: 2000)
      host.stop()
      throw error
    }
  }

  /// Ends backend and host.
  ///
  /// After the frontend has closed.
  func stop() {
    child?.end(milliseconds: 5000)
    host.stop()
  }

  private static func wait(
    for path: String, _ store: any XenStore, _ child: ChildCommand?, _ signals: borrowing Signals,
    seconds: Double?
  ) throws {
    var left = seconds.map { Int($0 * 10) }
    var look = pollfd(fd: signals.fileDescriptor, events: Int16(POLLIN), revents: 0)
    // A backend that stays at Initialising for its frontend has published its size by then.
    func isReady() throws -> Bool {
      let state = try store.read("\(path)/\(Key.state)")
      return try state == "2" || state == "4" || store.read("\(path)/\(Key.sectors)") != nil
    }
    while try !isReady() {
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
