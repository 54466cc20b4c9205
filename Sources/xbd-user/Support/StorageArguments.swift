// SPDX-License-Identifier: Apache-2.0
//
// What the reference backend serves and what it offers, as `serve --loopback` and `backend` take it.

public import ArgumentParser
public import XbdBack
internal import XenLoopback

extension BackendProfile: ExpressibleByArgument {}

/// Options of the reference backend.
struct StorageArguments: ParsableArguments {
  @Option(
    help: ArgumentHelp(
      "Create the image with this size if it does not exist (512M, 10G).", valueName: "bytes"))
  var size: String?

  @Option(
    help: ArgumentHelp(
      "Offer and behave as a known backend does; the options below change single things.", valueName: "name"))
  var profile: BackendProfile?

  @Option(help: ArgumentHelp("The disk's logical sector in bytes: 512 or 4096.", valueName: "bytes"))
  var sectorSize: Int?

  @Option(
    help: ArgumentHelp("Segments that the backend takes in an indirect request; 0: none.", valueName: "n"))
  var backendSegments: Int?

  @Option(
    help: ArgumentHelp("log2 of the largest ring that the backend takes, in pages.", valueName: "order"))
  var backendRingOrder: Int?

  @Option(help: ArgumentHelp("Grants that the backend keeps mapped for a queue, at most.", valueName: "n"))
  var maxPersistent: Int?

  @Flag(help: "The backend keeps no grants mapped.")
  var noBackendPersistent = false

  @Flag(help: "The backend maps page by page instead of a request's pages together.")
  var singleMapping = false

  @Flag(help: "The backend copies pages instead of mapping them, as QEMU's does.")
  var grantCopy = false

  @Flag(help: "The backend offers no flush.")
  var noFlush = false

  @Flag(help: "The backend offers no barrier.")
  var noBarrier = false

  @Flag(help: "The backend offers no discard.")
  var noDiscard = false

  @Option(
    help: ArgumentHelp(
      "Do something wrong, again for each option: KIND[:OPERATION]@WHEN, such as error:write@10 (docs/backends.md).",
      valueName: "fault"))
  var fault: [String] = []

  @Option(
    help: ArgumentHelp(
      "The seed of faults that come at random; without one, a new one is printed.", valueName: "n"))
  var faultSeed: UInt64?

  /// What creates the image, as a command line has it; empty when nothing does.
  var creation: [String] { size.map { ["--size", $0] } ?? [] }

  /// What was said about how the backend behaves, as a command line has it; empty when nothing was.
  var behaviour: [String] {
    var words: [String] = []
    func add(_ option: String, _ value: (some CustomStringConvertible)?) {
      if let value { words += [option, value.description] }
    }
    add("--profile", profile?.rawValue)
    add("--sector-size", sectorSize)
    add("--backend-segments", backendSegments)
    add("--backend-ring-order", backendRingOrder)
    add("--max-persistent", maxPersistent)
    for text in fault { add("--fault", text) }
    add("--fault-seed", faultSeed)
    for (isSet, word) in [
      (noBackendPersistent, "--no-backend-persistent"), (singleMapping, "--single-mapping"),
      (grantCopy, "--grant-copy"), (noFlush, "--no-flush"), (noBarrier, "--no-barrier"),
      (noDiscard, "--no-discard"),
    ] where isSet {
      words.append(word)
    }
    return words
  }

  mutating func validate() throws {
    if let sectorSize, sectorSize != 512, sectorSize != 4096 {
      throw ValidationError("--sector-size takes 512 or 4096, not \(sectorSize)")
    }
  }

  /// Milliseconds in which a backend that was killed may let go of its image.
  static let lockPatience: UInt64 = 1000

  /// Opens the disk.
  ///
  /// - Parameter specification: a path, memory:SIZE or null:SIZE.
  func open(_ specification: String, readOnly: Bool) throws -> any Storage {
    guard !LoopbackHost.isServing(specification) else {
      throw Failure(
        "\(specification) is the directory of a loopback host, not an image; name one of its devices too, as in "
          + "\"xvda --loopback \(specification)\"")
    }
    let kind = try StorageSpecification(parsing: specification)
    if size != nil {
      guard case .file = kind else {
        throw Failure("--size is for image files; \"\(specification)\" has its size in its name")
      }
    }
    return try kind.open(
      StorageOptions(
        readOnly: readOnly, createByteCount: try size.map { try ByteSize.parse($0) },
        sectorSize: sectorSize ?? 512, lockPatience: Self.lockPatience))
  }

  /// What the backend offers and how it behaves.
  ///
  /// - Parameter queues: at most; nil takes the profile's.
  func configuration(readOnly: Bool, queues: Int?) throws -> BackendConfiguration {
    var configuration = profile.map { BackendConfiguration.profile($0) } ?? BackendConfiguration()
    func set<Value>(_ path: WritableKeyPath<BackendConfiguration, Value>, _ value: Value?) {
      if let value { configuration[keyPath: path] = value }
    }
    if let queues { configuration.maxQueues = profile == nil ? queues : min(queues, configuration.maxQueues) }
    configuration.readOnly = readOnly
    set(\.sectorSize, sectorSize)
    set(\.maxIndirectSegments, backendSegments)
    set(\.maxRingPageOrder, backendRingOrder)
    set(\.maxPersistentGrants, maxPersistent)
    set(\.persistentGrants, noBackendPersistent ? false : nil)
    set(\.batchMapping, singleMapping ? false : nil)
    set(\.dataPath, grantCopy ? .grantCopy : nil)
    set(\.flush, noFlush ? .off : nil)
    set(\.barrier, noBarrier ? .off : nil)
    set(\.discard, noDiscard ? .off : nil)
    configuration.faults = try FaultPlan(parsing: fault, seed: faultSeed)
    if configuration.faults.isRandom { Console.note("the faults' seed is \(configuration.faults.seed)") }
    return configuration
  }
}
