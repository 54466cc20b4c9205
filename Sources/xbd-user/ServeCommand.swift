// SPDX-License-Identifier: Apache-2.0

import ArgumentParser
import Blkif
import Glibc
import Logging
import NBD
import Platform
import XbdBack
import XbdFront
import Xen
import XenLoopback

/// `xbd-user serve`: connects to a device and serves it as NBD.
struct ServeCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "serve",
    abstract: "Connect to a virtual block device and serve it as NBD.",
    discussion: """
      On a Xen guest: "xbd-user serve xvdb". Anywhere else: "xbd-user serve --loopback disk.img --size 1G", \
      where the loopback and the reference backend stand in for Xen. The URI for clients goes to stdout. \
      SIGTERM finishes what is in flight, flushes and ends; SIGUSR1 prints statistics to stderr.
      """)

  @OptionGroup
  var target: DeviceArguments

  @Option(
    help: ArgumentHelp(
      "Who serves the image: the reference backend here, the same in a process of its own, QEMU's, or none but the one you start.",
      valueName: "reference|process|qemu|none"))
  var backend = BackendChoice.reference

  @Flag(help: "Refuse writes.")
  var readOnly = false

  @Option(
    help: ArgumentHelp(
      "Pages that the loopback's frontend domain may share (default: \(LoopbackDefaults.pageLimit)).",
      valueName: "pages"))
  var gntallocLimit: Int?

  @Option(
    name: .customLong("run"),
    help: ArgumentHelp(
      "Run a shell command with $uri, $unixsocket and $exportname set, and end when it ends, with its status.",
      valueName: "command"))
  var command: String?

  @Option(help: ArgumentHelp("Write the process id to a file once the device is served.", valueName: "path"))
  var pidFile: String?

  @Flag(help: "Print statistics as JSON to stderr at the end.")
  var stats = false

  @Option(help: ArgumentHelp("Write statistics as JSON to a file at the end.", valueName: "path"))
  var statsFile: String?

  @Flag(name: .shortAndLong, help: "Say more on stderr; twice for the handshake.")
  var verbose: Int

  @OptionGroup(title: "The service")
  var service: ServiceArguments

  @OptionGroup(title: "When the backend goes")
  var reconnect: ReconnectArguments

  @OptionGroup(title: "The frontend")
  var frontend: FrontendArguments

  @OptionGroup(title: "The reference backend")
  var storage: StorageArguments

  mutating func validate() throws {
    guard target.device == nil || backend == .reference else {
      throw ValidationError("--backend is for an image with --loopback; a device has its backend")
    }
    try checkGntallocLimit(gntallocLimit ?? LoopbackDefaults.pageLimit)
  }

  func run() throws {
    try refuseWhatMeansNothing()
    // Both concern the whole process and come before the first thread.
    let inherited = try SocketActivation.take()
    let signals = try Signals([SIGTERM, SIGINT, SIGHUP, SIGCHLD, SIGUSR1])
    let logger = Log.start(verbosity: verbose)
    let directory = try TemporaryDirectory()
    let sockets = try service.listen(inherited: inherited, fallback: directory.path + "/nbd.sock")
    var embedded: EmbeddedLoopback?
    var outside: OutsideBackend?
    let system: any XenSystem
    var name = target.device ?? ""
    if target.device == nil, let loopback = target.loopback, backend != .reference {
      let made = try OutsideBackend(
        backend, directory: directory.path + "/xen", image: loopback, readOnly: readOnly,
        queues: frontend.negotiation.queues, storage: storage,
        pageLimit: gntallocLimit ?? LoopbackDefaults.pageLimit,
        timeout: Double(frontend.timeout), reconnects: reconnect.reconnect, signals: signals)
      outside = made
      system = made.frontend
      name = String(EmbeddedLoopback.device.number)
    } else if target.device == nil, let loopback = target.loopback {
      // First what may be refused, then what makes an image.
      let configuration = try storage.configuration(readOnly: readOnly, queues: frontend.negotiation.queues)
      let made = try EmbeddedLoopback(
        directory: directory.path + "/xen", image: loopback,
        storage: try storage.open(loopback, readOnly: readOnly), configuration: configuration,
        kind: storage.profile?.kind ?? "vbd", pageLimit: gntallocLimit ?? LoopbackDefaults.pageLimit,
        logger: logger)
      embedded = made
      system = made.frontend
      name = String(EmbeddedLoopback.device.number)
    } else if let loopback = target.loopback {
      system = try Systems.loopback(loopback, domain: loopbackFrontend)
    } else {
      system = try Systems.libXen(instead: "\"xbd-user serve --loopback memory:1G\"")
    }
    // The pid file is there until everything has ended.
    var pid: PidFile?
    defer { withExtendedLifetime((directory, pid)) {} }
    defer { outside?.stop() }
    var options = frontend.options
    reconnect.apply(to: &options)
    let device = try connect(name, system, options, logger, signals, outside)
    let session: ServeSession
    do {
      try embedded?.runInline(device.queues)
      session = try ServeSession(
        device: device, sockets: sockets, service: service, readOnly: readOnly, embedded: embedded,
        outside: outside, reconnects: reconnect.reconnect)
    } catch {
      ServeSession.close(device, within: ServeSession.patience)
      embedded?.stop()
      throw error
    }
    let outcome: SessionOutcome
    let child: ChildCommand?
    do {
      pid = try pidFile.map(PidFile.init)
      child = try startCommand(sockets, device, isInherited: !inherited.isEmpty)
      outcome = session.wait(signals: signals, child: child)
    } catch {
      session.stop()
      throw error
    }
    let unflushed = session.stop()
    // What happened to the device comes before what cannot be told of it.
    let reported = Result { try report(session) }
    do {
      try end(outcome, child, device.state, unflushed)
    } catch {
      if case .failure(let unreported) = reported { Console.note("xbd-user: \(unreported)") }
      throw error
    }
    try reported.get()
  }

  /// What the command ends with.
  ///
  /// - Parameter unflushed: what was lost, for a person.
  private func end(
    _ outcome: SessionOutcome, _ child: ChildCommand?, _ state: DeviceState, _ unflushed: String?
  ) throws {
    var lost = unflushed
    // What was in flight may not have been done.
    if case .failed(let error) = state { lost = error.message }
    var status: Int32
    switch outcome {
    case .deviceGone(let sentence):
      throw Failure([sentence, unflushed].compactMap(\.self).joined(separator: "; "))
    case .child(let ended): status = ended
    case .stopped(let signal):
      guard let child else {
        if let lost { throw Failure(lost) }
        return
      }
      // It was told to end. One that has not by now is left to itself, and the status is that of our own signal.
      status = child.exitStatus(milliseconds: 3000) ?? 128 + signal
    }
    if let lost { Console.note("xbd-user: \(lost)") }
    if status == 0, lost != nil { status = 1 }
    if status != 0 { throw ExitCode(status) }
  }

  /// Connects; a signal that asks for the end ends the waiting, and so does the end of a backend of ours.
  private func connect(
    _ name: String, _ system: any XenSystem, _ options: FrontendOptions, _ logger: Logger,
    _ signals: borrowing Signals, _ outside: OutsideBackend?
  ) throws -> BlockDevice {
    let cancellation = try EventLoop(capacity: 1)
    for descriptor in [signals.endDescriptor, outside?.endDescriptor].compactMap(\.self) {
      try cancellation.add(descriptor, .readable, token: 0)
    }
    do throws(XbdError) {
      return try BlockDevice.connect(
        name, on: system, options: options, logger: logger, cancellation: cancellation.fileDescriptor)
    } catch {
      if error.code == .cancelled, let exit = signals.nextEnd() { throw exit }
      if let sentence = outside?.takeDeath(within: error.code == .cancelled ? 2000 : 0) {
        throw Failure("\(sentence); it never connected")
      }
      throw error
    }
  }

  /// Says where the device is, or starts the command that is told so.
  private func startCommand(
    _ sockets: [ListeningSocket], _ device: BlockDevice, isInherited: Bool
  ) throws -> ChildCommand? {
    let uri = sockets.first?.address.uri(export: service.exportName)
    guard let command else {
      // Whoever handed us the socket knows where it is, and may use our stdout for something else.
      if !isInherited { announce(uri, device) }
      return nil
    }
    return try ChildCommand(
      command,
      variables: [
        ("uri", uri ?? ""), ("unixsocket", unixPath(sockets)), ("exportname", service.exportName),
      ])
  }

  /// An option that would do nothing is a misunderstanding.
  private func refuseWhatMeansNothing() throws {
    if reconnect.reconnect, backend == .process, let image = target.loopback, image.hasPrefix("memory:") {
      throw Failure(
        "--reconnect needs an image that outlives its backend, and \(image) ends with the backend's process; name a file"
      )
    }
    let isOurs = target.device == nil && (backend == .reference || backend == .process)
    if let option = storage.behaviour.first, !isOurs {
      throw Failure("\(option) is for the reference backend, which does not serve this device")
    }
    if storage.size != nil, target.device != nil {
      throw Failure("--size is for an image with --loopback; a device has its size")
    }
    if let gntallocLimit, target.device != nil {
      throw Failure(
        "--gntalloc-limit \(gntallocLimit) is for an image with --loopback; a domain's limit is "
          + "/sys/module/xen_gntalloc/parameters/limit, or what \"xbd-user loopback\" was started with")
    }
  }

  private func announce(_ uri: String?, _ device: BlockDevice) {
    if let uri {
      Console.line(uri)
    }
    guard isatty(STDERR_FILENO) == 1 || verbose > 0, let uri else { return }
    let size = device.features.sectorCount * 512
    let text = """
      \(device.location.device): \(size) bytes, \(device.queues.count) queue(s), rings of \
      \(1 << device.transport.ringPageOrder) page(s), requests of up to \(device.transport.maxSegments) segments
        look at it   nbdinfo '\(uri)'
        copy it      nbdcopy '\(uri)' copy.img
        as a file    mkdir -p /tmp/disk && nbdfuse /tmp/disk/nbd '\(uri)' &
        end          Ctrl-C
      """
    Console.note(text)
  }

  private func unixPath(_ sockets: [ListeningSocket]) -> String {
    if case .unix(let path)? = sockets.first?.address { return path }
    return ""
  }

  private func report(_ session: ServeSession) throws {
    guard stats || statsFile != nil else { return }
    let text = try JSONText.encode(session.report())
    if stats { Console.note(text) }
    if let statsFile { try Console.save(text + "\n", to: statsFile, what: "statistics") }
  }
}
