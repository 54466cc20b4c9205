// SPDX-License-Identifier: Apache-2.0

import ArgumentParser
import Blkif
import Glibc
import Logging
import Platform
import XbdBack
import XbdFront
import Xen
import XenLoopback

/// `xbd-user measure`: a load straight on the library's queues, with no NBD client in between.
struct MeasureCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "measure",
    abstract: "Read or write as fast as a device answers, with no NBD in between, and say what it cost.",
    discussion: """
      What ring, grants and the frontend's copy cost by themselves: "xbd-user measure xvdb --copy bounce" beside \
      "--copy direct", or any backend beside another one. Without Xen: "xbd-user measure --loopback memory:1G". \
      Each queue has a thread and a load of its own.
      """)

  @OptionGroup
  var target: DeviceArguments

  @Option(
    help: ArgumentHelp(
      "What to do, in order or at random places.", valueName: "read|write|randread|randwrite"))
  var load = LoadPattern.randread

  @Flag(help: "For loads that write: what the device holds may be lost.")
  var overwrite = false

  @Option(help: ArgumentHelp("Bytes of a request, a multiple of the device's sector.", valueName: "size"))
  var block = "4K"

  @Option(help: ArgumentHelp("Requests that each queue keeps in flight.", valueName: "n"))
  var depth = 32

  @Option(help: "Seconds that the load runs.")
  var seconds = 5

  @Flag(help: "Print the result as JSON.")
  var json = false

  @Flag(name: .shortAndLong, help: "Say more on stderr; twice for the handshake.")
  var verbose: Int

  @OptionGroup(title: "The frontend")
  var frontend: FrontendArguments

  @OptionGroup(title: "The reference backend")
  var storage: StorageArguments

  mutating func validate() throws {
    guard (1...1024).contains(depth) else { throw ValidationError("--depth takes 1 to 1024 requests") }
    guard (1...86400).contains(seconds) else { throw ValidationError("--seconds takes 1 to 86400") }
    // A memory disk of our own holds nothing that anybody could miss.
    let isDisposable =
      target.device == nil
      && (target.loopback?.hasPrefix("memory:") ?? false || target.loopback?.hasPrefix("null:") ?? false)
    guard !load.isWrite || overwrite || isDisposable else {
      throw ValidationError(
        "--load \(load.rawValue) overwrites what the device holds: add --overwrite if that may be lost")
    }
  }

  func run() throws {
    let byteCount = try ByteSize.parse(block)
    if target.device != nil, let option = storage.behaviour.first {
      throw Failure("\(option) is for the reference backend, which does not serve this device")
    }
    if storage.size != nil, target.device != nil {
      throw Failure("--size is for an image with --loopback; a device has its size")
    }
    let signals = try Signals([SIGTERM, SIGINT, SIGHUP])
    let logger = Log.start(verbosity: verbose)
    let directory = try TemporaryDirectory()
    defer { withExtendedLifetime(directory) {} }
    var embedded: EmbeddedLoopback?
    let system: any XenSystem
    if target.device != nil, let loopback = target.loopback {
      system = try Systems.loopback(loopback, domain: loopbackFrontend)
    } else if let loopback = target.loopback {
      let configuration = try storage.configuration(
        readOnly: !load.isWrite, queues: frontend.negotiation.queues)
      let made = try EmbeddedLoopback(
        directory: directory.path + "/xen", image: loopback,
        storage: try storage.open(loopback, readOnly: !load.isWrite), configuration: configuration,
        kind: storage.profile?.kind ?? "vbd", pageLimit: LoopbackDefaults.pageLimit, logger: logger)
      embedded = made
      system = made.frontend
    } else {
      system = try Systems.libXen(instead: "\"xbd-user measure --loopback memory:1G\"")
    }
    defer { embedded?.stop() }
    let block: BlockDevice
    do throws(XbdError) {
      block = try BlockDevice.connect(
        target.device ?? String(EmbeddedLoopback.device.number), on: system, options: frontend.options,
        logger: logger, cancellation: signals.endDescriptor)
    } catch {
      if error.code == .cancelled, let exit = signals.nextEnd() { throw exit }
      throw error
    }
    defer { ServeSession.close(block, within: Self.patience) }
    try embedded?.runInline(block.queues)
    let (result, failure) = try measure(block, byteCount, signals)
    try Console.result(json ? try JSONText.encode(result) : result.text)
    guard result.failed == 0 else {
      throw Failure("\(result.failed) requests failed (\(failure)), so the figures mean nothing")
    }
  }

  /// Runs the load on every queue until the time is over, or a signal ends it earlier.
  private func measure(
    _ device: BlockDevice, _ byteCount: UInt64, _ signals: borrowing Signals
  ) throws -> (MeasureReport, failure: String) {
    let size = device.features.sectorCount << 9
    guard !load.isWrite || !device.queues.contains(where: { $0.parameters.isReadOnly }) else {
      throw Failure("\(device.location.device) is read-only, and --load \(load.rawValue) writes")
    }
    guard byteCount > 0, byteCount % UInt64(device.features.sectorSize) == 0, byteCount <= min(size, 64 << 20)
    else {
      throw Failure(
        "--block \(block) does not fit \(device.location.device): a multiple of its sector, \(device.features.sectorSize) bytes, "
          + "and no more than 64 MiB or its size, \(size) bytes")
    }
    let before = Self.processorSeconds()
    let start = MonotonicClock.nanoseconds()
    // Each queue goes to its thread, and comes back to this one when the thread has ended.
    let loads = device.queues.enumerated().map { index, queue in
      QueueLoad(
        queue, pattern: load, byteCount: byteCount, blocks: size / byteCount, depth: depth,
        seed: UInt64(index + 1),
        until: start + UInt64(seconds) * 1_000_000_000)
    }
    nonisolated(unsafe) let handed = loads
    var threads: [DedicatedThread] = []
    do {
      for index in handed.indices {
        threads.append(try DedicatedThread(name: "measure-\(index)") { handed[index].run() })
      }
    } catch {
      for load in loads { load.stop() }
      // Ends what a backend does not answer.
      device.close(within: Self.patience)
      for thread in threads { thread.join() }
      throw Failure(
        "no thread for queue \(threads.count) of \(loads.count): \(error); see ulimit -u, or take fewer --queues"
      )
    }
    watch(device, signals, handed, start)
    for thread in threads { thread.join() }
    let elapsed = MonotonicClock.nanoseconds() - start
    let report = MeasureReport(
      device: device, load: load, byteCount: byteCount, depth: depth, nanoseconds: elapsed, loads: loads,
      processorSeconds: Self.processorSeconds() - before)
    return (report, why(device, loads))
  }

  /// Why requests failed, if any did: what is the matter with the device, or what the first of them was told.
  private func why(_ device: BlockDevice, _ loads: [QueueLoad]) -> String {
    if case .failed(let error) = device.state { return error.message }
    switch loads.lazy.compactMap(\.failure).first {
    case .shutdown?: return "\(device.location.device) was taken away"
    case .readOnly?: return "\(device.location.device) is read-only"
    case .outOfRange?: return "\(device.location.device) has become smaller"
    case .notSupported?: return "the backend does not support them"
    case .ioError?, .okay?, nil: return "the backend said that they did; its log says why"
    }
  }

  /// How long a backend may be silent at the end.
  private static let patience = Duration.seconds(5)

  /// Shows on a terminal how far it is, and ends the load when a signal comes.
  ///
  /// Closes the device over a backend from which nothing comes any more at the end: that fails what it has.
  private func watch(
    _ device: BlockDevice, _ signals: borrowing Signals, _ loads: [QueueLoad], _ start: UInt64
  ) {
    var look = pollfd(fd: signals.fileDescriptor, events: Int16(POLLIN), revents: 0)
    let isTerminal = isatty(STDERR_FILENO) == 1
    // The end of the load, or the last answer after it.
    var silentSince = start + UInt64(seconds) * 1_000_000_000
    var answers: UInt64 = 0
    var isClosing = false
    while !loads.allSatisfy(\.hasEnded) {
      _ = poll(&look, 1, 100)
      let now = MonotonicClock.nanoseconds()
      if signals.next() != nil {
        for load in loads { load.stop() }
        silentSince = min(silentSince, now)
      }
      let sum = loads.reduce(0) { $0 &+ $1.answers }
      if sum != answers { silentSince = max(silentSince, now) }
      answers = sum
      if now > silentSince, .nanoseconds(Int64(now - silentSince)) > Self.patience, !isClosing {
        isClosing = true
        device.close(within: Self.patience)
      }
      if isTerminal {
        Console.progress("\((MonotonicClock.nanoseconds() - start) / 1_000_000_000) of \(seconds) s")
      }
    }
    if isTerminal { Console.progress("") }
  }

  /// Processor time of this process so far, in user and kernel.
  private static func processorSeconds() -> Double {
    var usage = rusage()
    getrusage(__rusage_who_t(RUSAGE_SELF.rawValue), &usage)
    return Double(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec)
      + Double(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6
  }
}
