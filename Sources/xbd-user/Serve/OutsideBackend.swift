// SPDX-License-Identifier: Apache-2.0
//
// `serve --loopback IMAGE --backend …`: a loopback host in this process, and a backend that is a process of its own:
// QEMU's under the drop-in, the reference backend, or whatever the user starts.

import ArgumentParser
import Blkif
import Glibc
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
  private let host: LoopbackHost
  private let toolstack: LoopbackToolstack
  private let nodes: LoopbackBlockDevice
  private let disk: QEMUDisk?
  /// The command of the process that serves it; nil when the user starts one.
  private let command: [String]?
  private let name: String
  private var helper: HelperProcess?
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
      command =
        [own, "backend", image, "--loopback", host.directory, "--device", "\(nodes.virtualDevice)"]
        + ["--max-queues", "\(queues)", "--with-parent"] + (readOnly ? ["--read-only"] : [])
        + storage.commandLine
    case .qemu:
      guard access(QEMUDisk.program, X_OK) == 0 else {
        throw Failure("\(QEMUDisk.program) is missing: install the package qemu-system-xen")
      }
      _ = try DropIn.library()
      name = "QEMU's backend"
      nodes.kind = "qdisk"
      nodes.type = "qdisk"
      let disk = try QEMUDisk(image, storage, readOnly: readOnly, locking: true)
      nodes.parameters = disk.parameters
      self.disk = disk
      // QEMU writes the nodes of a device that its command line names.
      if !readOnly { try toolstack.attach(nodes) }
      command =
        [own, "loopback", "exec", "--with-parent", host.directory, "--"]
        + disk.command(domain: loopbackFrontend.rawValue, readOnly: readOnly ? nodes.name : nil)
    case .none:
      name = "the backend"
      command = nil
      nodes.kind = "qdisk"
      nodes.type = "qdisk"
      if !image.contains(":") {
        nodes.parameters = try QEMUDisk(image, storage, readOnly: readOnly, locking: false).parameters
      }
      disk = nil
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
    self.nodes = nodes
    do {
      if let command { helper = try HelperProcess(name, command) }
      try wait(signals, seconds: command == nil ? nil : timeout)
      helper?.showOutput()
    } catch {
      helper?.end(milliseconds: 2000)
      host.stop()
      throw error
    }
  }

  /// Looks whether the backend's process has ended by itself, and if so closes its end of the device, as nobody else
  /// would: on Xen that is the toolstack's business as well.
  ///
  /// - Returns: how it ended, in a sentence; nil while it runs.
  func ended() -> String? {
    guard let sentence = helper?.ended() else { return nil }
    helper = nil
    // The frontend sees that nobody is there; what is in flight fails, or waits for `restart`.
    try? toolstack.store.write("\(nodes.backendPath)/state", "6")
    return sentence
  }

  /// Starts the backend's process again after its end.
  ///
  /// The frontend must have let go of the ring: a new QEMU would connect to the old one at once.
  func restart() throws {
    guard let command, helper == nil else { return }
    if nodes.kind == "qdisk" {
      // QEMU takes up what is attached and at state 1; a reference backend takes the nodes over as they are.
      try toolstack.store.transaction { (operations) throws(XenError) in
        try operations.write("\(nodes.backendPath)/online", "1")
        try operations.write("\(nodes.backendPath)/state", "1")
      }
    }
    let helper = try HelperProcess(name, command)
    helper.showOutput()
    self.helper = helper
  }

  /// Ends backend and host.
  ///
  /// After the frontend has closed.
  func stop() {
    helper?.end(milliseconds: 5000)
    host.stop()
  }

  /// Waits until the backend has published what it can.
  private func wait(_ signals: borrowing Signals, seconds: Double?) throws {
    var left = seconds.map { Int($0 * 10) }
    var look = pollfd(fd: signals.fileDescriptor, events: Int16(POLLIN), revents: 0)
    let path = "\(nodes.backendPath)/state"
    while try toolstack.store.read(path) != "2" {
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
      while let signal = signals.next() {
        if signal != SIGCHLD && signal != SIGUSR1 { throw ExitCode(128 + signal) }
      }
    }
  }
}
