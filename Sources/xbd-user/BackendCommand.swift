// SPDX-License-Identifier: Apache-2.0

import ArgumentParser
import Blkif
import CXen
import Glibc
import Platform
import XbdBack
import XenLoopback
import Xen

/// `xbd-user backend`: the reference backend in a process of its own.
struct BackendCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "backend",
    abstract:
      "Serve an image with the reference backend: in domain 0, a driver domain, or on a loopback host.",
    usage: """
      xbd-user backend <image> --frontend-domain <n> [--device <vdev>]
      xbd-user backend <image> <backend-path>
      xbd-user backend <image> --loopback <directory>
      """,
    discussion: """
      Without a path, the nodes of the device are created as a toolstack would, unless an earlier backend left \
      them, and removed at the end. With a path, such as /local/domain/0/backend/vbd/1/51728, they are a \
      toolstack's, and stay. SIGTERM asks the frontend to close and ends. The command ends by itself when the \
      toolstack takes the device away, or when the frontend's domain is gone.
      """)

  @Argument(help: "An image file, memory:SIZE or null:SIZE.")
  var image: String

  @Argument(help: "The backend's directory in xenstore, when a toolstack has written it.")
  var backendPath: String?

  @Option(
    help: ArgumentHelp(
      "The directory of a running loopback host, instead of this machine's Xen.", valueName: "directory"))
  var loopback: String?

  @Option(help: ArgumentHelp("The domain that uses the device, by number or name.", valueName: "domain"))
  var frontendDomain: String?

  @Option(
    name: [.long, .customLong("vdev")], help: "The device's name or number in that domain (default: xvda).")
  var device: String?

  @Option(
    help: ArgumentHelp(
      "The directory under backend/ for nodes that are created; vbd is where Linux's blkback looks.",
      valueName: "kind"))
  var kind: String?

  @Flag(help: "With a path: wait until a toolstack has written the nodes.")
  var wait = false

  @Flag(help: "Refuse writes.")
  var readOnly = false

  @Option(help: ArgumentHelp("Queues that the backend serves, each with a thread.", valueName: "n"))
  var maxQueues: Int?

  @Flag(help: ArgumentHelp("End when whoever started this command ends.", visibility: .hidden))
  var withParent = false

  @Flag(name: .shortAndLong, help: "Say more on stderr.")
  var verbose: Int

  @OptionGroup(title: "The reference backend")
  var storage: StorageArguments

  mutating func validate() throws {
    if backendPath != nil, frontendDomain != nil || kind != nil || device != nil {
      throw ValidationError("a backend's path names domain, kind and device already")
    }
    guard !wait || backendPath != nil else {
      throw ValidationError("--wait is for nodes that a toolstack writes: give the backend's path")
    }
    guard backendPath != nil || loopback != nil || frontendDomain != nil else {
      throw ValidationError(
        "say whose device it is: --frontend-domain with a number or name, or the backend's path in xenstore")
    }
    if let kind, kind.isEmpty || kind.contains("/") { throw ValidationError("--kind takes one name") }
    guard (1...256).contains(maxQueues ?? 1) else { throw ValidationError("--max-queues takes 1 to 256") }
  }

  func run() throws {
    let signals = try Signals([SIGTERM, SIGINT, SIGHUP])
    let parent = withParent ? getppid() : nil
    if withParent { _ = cxen_end_with_parent(SIGTERM) }
    let logger = Log.start(verbosity: verbose)
    let configuration = try storage.configuration(readOnly: readOnly, queues: maxQueues)
    let disk = try storage.open(image, readOnly: readOnly)
    let system = try system()
    let store = try system.openXenStore()
    let directories = try locate(store)
    if system.sharesDevicesWithKernel, let claim = KernelBackend().claim(on: directories) {
      throw Failure(claim)
    }
    let events = try BackendEvents()
    let ownsNodes = backendPath == nil
    var origin = DeviceDirectories.Origin.found
    if ownsNodes {
      origin = try directories.create(in: store, parameters: image, readOnly: readOnly)
    } else if wait {
      guard try waitForNodes(directories, store, signals) else { return }
    }
    let backend: Backend
    do {
      backend = try Backend(
        system: system, logger: logger, onRemoval: { _ in events.removed() }, onLoss: { events.lost($0) })
      try backend.add(
        directory: directories.backendPath, storage: disk, configuration: configuration,
        endsWithFrontend: ownsNodes)
    } catch {
      // A guest would wait for a device that nobody serves.
      if case .created = origin { try? directories.remove(from: store) }
      throw error
    }
    // What started us has said it, and takes what we say last for why we ended.
    if parent == nil {
      Console.line(
        "\(directories.device) for domain \(directories.frontend): \(image), \(disk.byteCount) bytes, at \(directories.backendPath)"
      )
    }
    var look = [
      pollfd(fd: signals.fileDescriptor, events: Int16(POLLIN), revents: 0),
      pollfd(fd: events.fileDescriptor, events: Int16(POLLIN), revents: 0),
    ]
    while !isToldToEnd(signals, by: parent), events.outcome == nil { _ = poll(&look, 2, -1) }
    // Before the backend is stopped, which is a removal as well.
    let outcome = events.outcome
    backend.stop(waiting: outcome == nil ? 5000 : 0)
    if case .lost(let sentence)? = outcome {
      throw Failure("the device is no longer looked after: \(sentence)")
    }
    if ownsNodes { try directories.remove(from: store) }
    if case .removed? = outcome {
      Console.note("\(directories.device) for domain \(directories.frontend) is gone")
    }
  }

  /// Takes the signals that have come.
  ///
  /// - Parameter parent: whoever started this command and ends it when it is done with the device. A signal to all of a service
  ///   comes to that one too, which has yet to flush the device.
  /// - Returns: whether one of them is to be followed.
  private func isToldToEnd(_ signals: borrowing Signals, by parent: pid_t?) -> Bool {
    while let (_, sender) = signals.nextWithSender() {
      guard let parent, sender != parent, getppid() == parent else { return true }
    }
    return false
  }

  private func system() throws -> any XenSystem {
    guard let loopback else {
      return try Systems.libXenBackend(
        instead: "\"xbd-user backend\" with \"--loopback DIRECTORY\"")
    }
    return try LoopbackDomain(joining: loopback, domain: .dom0)
  }

  /// Where the device is or will be.
  private func locate(_ store: any XenStore) throws -> DeviceDirectories {
    // Domain 0 may be without the node.
    let own = DomainID(try store.read("domid").flatMap { UInt16($0) } ?? 0)
    if let backendPath { return try DeviceDirectories(backendPath: backendPath, own: own) }
    let name = device ?? "xvda"
    guard let device = VirtualDevice(name) else {
      throw Failure("\"\(name)\" is no virtual block device; give a name (xvdb) or a number (51728)")
    }
    let frontend = try frontendDomain.map { try domain($0, store) } ?? loopbackFrontend
    // Linux loads blkback for every "vbd" in a domain with a kernel of its own.
    let kind = kind ?? (loopback == nil ? "xbd" : storage.profile?.kind ?? "vbd")
    return DeviceDirectories(device: device, of: frontend, servedBy: own, kind: kind)
  }

  private func domain(_ text: String, _ store: any XenStore) throws -> DomainID {
    if let number = UInt16(text) {
      guard number < DomainID.firstReserved.rawValue else { throw Failure("\(number) is no domain's number") }
      return DomainID(number)
    }
    for name in try store.list("/local/domain") ?? [] {
      if try store.read("/local/domain/\(name)/name") == text, let number = UInt16(name) {
        return DomainID(number)
      }
    }
    throw Failure("no domain is called \"\(text)\"; give its number, which \"xl list\" shows")
  }

  /// Waits until a toolstack has written the nodes.
  ///
  /// - Returns: false when a signal came first.
  private func waitForNodes(
    _ place: DeviceDirectories, _ store: any XenStore, _ signals: borrowing Signals
  ) throws -> Bool {
    let path = place.backendPath
    // The state is what is written last by whoever uses no transaction.
    func isThere() throws -> Bool {
      try store.read("\(path)/\(Key.frontend)") != nil && store.read("\(path)/\(Key.state)") != nil
    }
    try store.watch(path, token: "nodes")
    if try !isThere() { Console.note("waiting for \(path)") }
    var look = [
      pollfd(fd: signals.fileDescriptor, events: Int16(POLLIN), revents: 0),
      pollfd(fd: store.fileDescriptor, events: Int16(POLLIN), revents: 0),
    ]
    while try !isThere() {
      _ = poll(&look, 2, -1)
      if signals.next() != nil { return false }
      while try store.nextWatchEvent() != nil {}
    }
    try store.unwatch(path, token: "nodes")
    return true
  }
}
