// SPDX-License-Identifier: Apache-2.0
//
// What the reference backend serves and what it offers, as `serve --loopback` and `backend` take it.

import ArgumentParser
import XbdBack

/// Options of the reference backend.
struct StorageArguments: ParsableArguments {
  @Option(
    help: ArgumentHelp(
      "Create the image with this size if it does not exist (512M, 10G).", valueName: "bytes"))
  var size: String?

  @Option(help: "The disk's logical sector in bytes: 512 or 4096.")
  var sectorSize = 512

  @Option(
    help: ArgumentHelp("Segments that the backend takes in an indirect request; 0: none.", valueName: "n"))
  var backendSegments = 256

  @Option(
    help: ArgumentHelp("log2 of the largest ring that the backend takes, in pages.", valueName: "order"))
  var backendRingOrder = 4

  @Option(help: ArgumentHelp("Grants that the backend keeps mapped for a queue, at most.", valueName: "n"))
  var maxPersistent = 1056

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

  /// An option that was given and means something to the reference backend only.
  var firstForReferenceOnly: String? {
    let given = [
      (sectorSize != 512, "--sector-size"), (backendSegments != 256, "--backend-segments"),
      (backendRingOrder != 4, "--backend-ring-order"), (maxPersistent != 1056, "--max-persistent"),
      (noBackendPersistent, "--no-backend-persistent"), (singleMapping, "--single-mapping"),
      (grantCopy, "--grant-copy"), (noFlush, "--no-flush"), (noBarrier, "--no-barrier"),
      (noDiscard, "--no-discard"),
    ]
    return given.first { $0.0 }?.1
  }

  /// The options as another process takes them.
  var commandLine: [String] {
    var words = [
      "--sector-size", "\(sectorSize)", "--backend-segments", "\(backendSegments)", "--backend-ring-order",
      "\(backendRingOrder)", "--max-persistent", "\(maxPersistent)",
    ]
    if let size { words += ["--size", size] }
    for (isSet, word) in [
      (noBackendPersistent, "--no-backend-persistent"), (singleMapping, "--single-mapping"),
      (grantCopy, "--grant-copy"), (noFlush, "--no-flush"), (noBarrier, "--no-barrier"),
      (noDiscard, "--no-discard"),
    ] where isSet {
      words.append(word)
    }
    return words
  }

  /// Opens the disk.
  ///
  /// - Parameter specification: a path, memory:SIZE or null:SIZE.
  func open(_ specification: String, readOnly: Bool) throws -> any Storage {
    let kind = try StorageSpecification(parsing: specification)
    if size != nil {
      guard case .file = kind else {
        throw Failure("--size is for image files; \"\(specification)\" has its size in its name")
      }
    }
    return try kind.open(
      StorageOptions(
        readOnly: readOnly, createByteCount: try size.map { try ByteSize.parse($0) }, sectorSize: sectorSize))
  }

  func configuration(readOnly: Bool, queues: Int) -> BackendConfiguration {
    var configuration = BackendConfiguration()
    configuration.sectorSize = sectorSize
    configuration.readOnly = readOnly
    configuration.maxQueues = queues
    configuration.maxIndirectSegments = backendSegments
    configuration.maxRingPageOrder = backendRingOrder
    configuration.maxPersistentGrants = maxPersistent
    configuration.persistentGrants = !noBackendPersistent
    configuration.batchMapping = !singleMapping
    configuration.dataPath = grantCopy ? .grantCopy : .map
    configuration.flush = noFlush ? .off : .on
    configuration.barrier = noBarrier ? .off : .on
    configuration.discard = noDiscard ? .off : .on
    return configuration
  }
}
