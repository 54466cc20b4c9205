// SPDX-License-Identifier: Apache-2.0
//
// What a user may ask of the frontend that shows in what is negotiated: with `probe`, before anything is.

public import ArgumentParser
internal import Blkif
internal import Glibc
public import XbdFront

extension GrantMode: ExpressibleByArgument {}
extension SectorsUnit: ExpressibleByArgument {}

/// Options that pin what is negotiated.
struct NegotiationArguments: ParsableArguments {
  @Option(
    help: ArgumentHelp(
      "Queues, each with a thread; the backend may serve fewer. The default is one for each processor, 4 at most."
    ))
  var queues = Self.defaultQueues

  @Option(help: "log2 of each ring's pages, 0 to 4; the backend may take less.")
  var ringOrder = 2

  @Option(help: "Segments of the largest request, up to 4096; 0, as 1 to 11, means no indirect requests.")
  var indirect = 256

  @Option(help: "Whether pages are shared once (persistent) or for each operation (per-request).")
  var grants = GrantMode.persistent

  @Flag(help: "Do not tell the backend that it may keep grants mapped.")
  var noPersistent = false

  @Option(help: "Pages that all queues together may share besides their rings.")
  var poolPages = 960

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

  /// As many as can run at once; each takes its part of the pool, and beyond four those get small.
  private static var defaultQueues: Int { max(1, min(4, Int(sysconf(Int32(_SC_NPROCESSORS_ONLN))))) }

  mutating func validate() throws {
    guard (1...64).contains(queues) else { throw ValidationError("--queues takes 1 to 64") }
    guard (0...4).contains(ringOrder) else { throw ValidationError("--ring-order takes 0 to 4") }
    guard (0...4096).contains(indirect) else { throw ValidationError("--indirect takes 0 to 4096") }
    guard (1...1_048_576).contains(poolPages) else {
      throw ValidationError("--pool-pages takes 1 to 1048576")
    }
  }

  func apply(to options: inout FrontendOptions) {
    options.queueCount = queues
    options.ringPageOrder = ringOrder
    options.maxSegments = indirect == 0 ? BlkIf.maxDirectSegments : indirect
    options.grants = grants
    options.persistent = !noPersistent
    options.poolPages = poolPages
    options.useFlush = !ignoreFlush
    options.useBarrier = !ignoreBarrier
    options.useDiscard = !ignoreDiscard
    options.secureDiscard = secureDiscard
    options.sectorsUnit = sectorsUnit
  }
}
