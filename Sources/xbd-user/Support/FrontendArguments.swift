// SPDX-License-Identifier: Apache-2.0
//
// What a user may ask of the frontend, as `serve` and `probe` take it.

public import ArgumentParser
public import Blkif
internal import Glibc
public import XbdFront

extension CopyMode: ExpressibleByArgument {}
extension GrantMode: ExpressibleByArgument {}
extension ABI: ExpressibleByArgument {}
extension SectorsUnit: ExpressibleByArgument {}

/// An answer on a command line.
enum YesNo: String, ExpressibleByArgument, CaseIterable {
  case yes
  case no
}

/// Options that pin what is negotiated.
struct FrontendArguments: ParsableArguments {
  @Option(
    help: ArgumentHelp(
      "Queues, each with a thread; the backend may serve fewer. The default is one for each processor, 4 at most."
    ))
  var queues = Self.defaultQueues

  @Option(help: "log2 of each ring's pages, 0 to 4; the backend may take less.")
  var ringOrder = 2

  @Option(help: "Segments of the largest request, up to 4096; 0, as 1 to 11, means no indirect requests.")
  var indirect = 256

  @Option(
    help: "How payloads travel: in the granted pages themselves (direct) or copied to and from them (bounce)."
  )
  var copy = CopyMode.direct

  @Option(help: "Whether pages are shared once (persistent) or for each operation (per-request).")
  var grants = GrantMode.persistent

  @Flag(help: "Do not tell the backend that it may keep grants mapped.")
  var noPersistent = false

  @Option(help: "Pages that all queues together may share besides their rings.")
  var poolPages = 960

  @Option(
    help: "Whether the backend may see what earlier requests left in a page; overrides the trusted node.")
  var trusted: YesNo?

  @Flag(help: "Do not use FLUSH_DISKCACHE although the backend has it, but empty barriers if it has those.")
  var ignoreFlush = false

  @Flag(help: "Do not use empty barriers; with --ignore-flush there is no flushing at all.")
  var ignoreBarrier = false

  @Flag(help: "Do not use discard although the backend has it.")
  var ignoreDiscard = false

  @Flag(help: "Have every discard be a secure one; not offered unless the backend can.")
  var secureDiscard = false

  @Option(
    help: ArgumentHelp(
      "What the backend counts sectors in where they are larger than 512 bytes; \"sector-size\" for FreeBSD's.",
      valueName: "512|sector-size"))
  var sectorsUnit = SectorsUnit.bytes512

  @Option(help: "The layout of requests; anything but this machine's own is for testing backends.")
  var abi = ABI.native

  @Option(help: "Seconds that the backend may take for each step of the handshake.")
  var timeout = 30

  @Option(
    help: ArgumentHelp(
      "How long the backend may stay at Initialising before the ring is published all the same, as MirageOS's wants it.",
      valueName: "milliseconds"))
  var initialisingGrace = 2000

  @Option(
    help: "Seconds that the backend may leave a request unanswered; then the device is given up. 0: for ever."
  )
  var requestTimeout = 0

  /// As many as can run at once; each takes its part of the pool, and beyond four those get small.
  private static var defaultQueues: Int { max(1, min(4, Int(sysconf(Int32(_SC_NPROCESSORS_ONLN))))) }

  mutating func validate() throws {
    guard (1...64).contains(queues) else { throw ValidationError("--queues takes 1 to 64") }
    guard (0...4).contains(ringOrder) else { throw ValidationError("--ring-order takes 0 to 4") }
    guard (0...4096).contains(indirect) else { throw ValidationError("--indirect takes 0 to 4096") }
    guard (1...1_048_576).contains(poolPages) else {
      throw ValidationError("--pool-pages takes 1 to 1048576")
    }
    guard (0...86400).contains(requestTimeout) else {
      throw ValidationError("--request-timeout takes 0 to 86400 seconds")
    }
    guard (0...86_400_000).contains(initialisingGrace) else {
      throw ValidationError("--initialising-grace takes 0 to 86400000 milliseconds")
    }
    guard (1...86400).contains(timeout) else { throw ValidationError("--timeout takes 1 to 86400 seconds") }
  }

  var options: FrontendOptions {
    var options = FrontendOptions()
    options.queueCount = queues
    options.ringPageOrder = ringOrder
    options.maxSegments = indirect == 0 ? BlkIf.maxDirectSegments : indirect
    options.copy = copy
    options.grants = grants
    options.persistent = !noPersistent
    options.poolPages = poolPages
    options.trusted = trusted.map { $0 == .yes }
    options.abi = abi
    options.handshakeTimeout = .seconds(timeout)
    options.initialisingGrace = .milliseconds(initialisingGrace)
    options.requestTimeout = requestTimeout == 0 ? nil : .seconds(requestTimeout)
    options.useFlush = !ignoreFlush
    options.useBarrier = !ignoreBarrier
    options.useDiscard = !ignoreDiscard
    options.secureDiscard = secureDiscard
    options.sectorsUnit = sectorsUnit
    return options
  }
}
