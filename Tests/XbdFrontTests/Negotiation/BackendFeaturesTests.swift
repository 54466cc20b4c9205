// SPDX-License-Identifier: Apache-2.0
//
// Every value that a backend's nodes can have, sensible or not.

import Blkif
import Testing

@testable import XbdFront

@Suite struct BackendFeaturesTests {
  static func nodes(_ text: [String: String]) -> Nodes { text.mapValues { Array($0.utf8) } }
  static func device(_ text: [String: String]) throws -> DeviceFeatures {
    try DeviceFeatures(nodes(["sectors": "2048"].merging(text) { $1 }))
  }
  static func transport(_ text: [String: String]) throws -> TransportFeatures {
    try TransportFeatures(nodes(text))
  }
  static func offender(_ body: () throws -> Void) -> String? {
    do {
      try body()
      return nil
    } catch { return (error as? MalformedNode)?.key ?? "\(error)" }
  }

  @Test func missingNodesHaveTheHeadersDefaults() throws {
    let features = try Self.device([:])
    #expect(features.sectorCount == 2048)
    #expect(features.sectorSize == 512)
    #expect(features.physicalSectorSize == 512)
    #expect(features.info == [])
    #expect(!features.barrier && !features.flushCache && !features.persistent)
    #expect(features.discard == nil)
    #expect(
      try TransportFeatures([:])
        == Self.transport(["multi-queue-max-queues": "1", "max-ring-page-order": "0"]))
  }

  @Test(arguments: [
    "", "-1", "4x", " 8", "+8", "0x10", "8 ", "8\0", "\0", "18446744073709551615", "18446744073709551616",
    "36028797018963968", "99999999999999999999", "000000000000000000008", "١",
    String(repeating: "9", count: 4096),
  ])
  func aMalformedSizeIsRefused(value: String) throws {
    #expect(Self.offender { _ = try Self.device(["sectors": value]) } == "sectors")
  }

  @Test func aMissingSizeIsRefused() {
    #expect(Self.offender { _ = try DeviceFeatures([:]) } == "sectors")
  }

  @Test(arguments: ["0", "1", "00000000000000000008", "18014398509481983"])
  func everyOtherSizeIsTaken(value: String) throws {
    #expect(try Self.device(["sectors": value]).sectorCount == UInt64(value))
  }

  @Test(arguments: [
    "0", "1", "3", "256", "511", "513", "520", "8192", "65536", "2147483648", "4294967808", "x",
  ])
  func aSectorSizeThatCannotBeIsRefused(value: String) {
    #expect(Self.offender { _ = try Self.device(["sector-size": value]) } == "sector-size")
  }

  @Test(arguments: [512, 1024, 2048, 4096])
  func everyPowerOfTwoUpToAPageIsTaken(value: Int) throws {
    #expect(try Self.device(["sector-size": "\(value)"]).sectorSize == value)
  }

  @Test func aSizeThatIsNoMultipleOfTheSectorIsRefused() {
    #expect(Self.offender { _ = try Self.device(["sector-size": "4096", "sectors": "2047"]) } == "sectors")
  }

  @Test(arguments: [("0", 512), ("256", 512), ("513", 512), ("4096", 4096), ("512", 512), ("65536", 65536)])
  func aPhysicalSectorThatMakesNoSenseIsTheLogicalOne(value: String, size: Int) throws {
    #expect(try Self.device(["physical-sector-size": value]).physicalSectorSize == size)
  }

  @Test(arguments: [
    ("0", 0), ("1", 1), ("11", 11), ("12", 12), ("512", 512), ("513", 513), ("4096", 4096),
    ("4097", 4096), ("2147483648", 4096),
  ])
  func indirectSegmentsAreBroughtDownToTheProtocols(value: String, segments: Int) throws {
    #expect(try Self.transport(["feature-max-indirect-segments": value]).maxIndirectSegments == segments)
  }

  @Test(arguments: ["4294967552", "-1", "", "256 "])
  func malformedIndirectSegmentsAreRefused(value: String) {
    let key = "feature-max-indirect-segments"
    #expect(Self.offender { _ = try Self.transport([key: value]) } == key)
  }

  @Test(arguments: [("0", 0), ("4", 4), ("20", 20), ("31", 20)])
  func ringOrdersAreTaken(value: String, order: Int) throws {
    #expect(try Self.transport(["max-ring-page-order": value]).maxRingPageOrder == order)
  }

  @Test(arguments: ["32", "1048576", "-1", "4 "])
  func ringOrdersThatCannotBeAreRefused(value: String) {
    #expect(Self.offender { _ = try Self.transport(["max-ring-page-order": value]) } == "max-ring-page-order")
  }

  @Test(arguments: ["0", "3", "5000000000", "-4"])
  func ringPagesThatAreNoPowerOfTwoAreRefused(value: String) {
    #expect(Self.offender { _ = try Self.transport(["max-ring-pages": value]) } == "max-ring-pages")
  }

  @Test func theOrderWinsOverItsDeprecatedTwin() throws {
    #expect(try Self.transport(["max-ring-page-order": "2", "max-ring-pages": "16"]).maxRingPageOrder == 2)
    #expect(try Self.transport(["max-ring-pages": "16"]).maxRingPageOrder == 4)
    #expect(try Self.transport(["max-ring-pages": "2147483648"]).maxRingPageOrder == 20)
  }

  @Test func queues() throws {
    #expect(try Self.transport(["multi-queue-max-queues": "0"]).maxQueues == 1)
    #expect(try Self.transport(["multi-queue-max-queues": "8"]).maxQueues == 8)
    for value in ["65536", "-1"] {
      #expect(
        Self.offender { _ = try Self.transport(["multi-queue-max-queues": value]) }
          == "multi-queue-max-queues")
    }
  }

  @Test func discardLimits() throws {
    func limits(_ nodes: [String: String]) throws -> DiscardLimits? {
      try Self.device(["feature-discard": "1"].merging(nodes) { $1 }).discard
    }
    #expect(try limits([:]) == DiscardLimits(granularity: 512, alignment: 0, secure: false))
    // QEMU's "don't know"
    let zeroes = ["discard-granularity": "0", "discard-alignment": "0"]
    #expect(try limits(zeroes) == DiscardLimits(granularity: 512, alignment: 0, secure: false))
    #expect(try limits(["discard-granularity": "4096"])?.granularity == 4096)
    #expect(try limits(["discard-granularity": "4096", "discard-alignment": "9216"])?.alignment == 1024)
    #expect(try limits(["discard-alignment": "512"])?.alignment == 0)
    #expect(try limits(["discard-secure": "1"])?.secure == true)
    #expect(try limits(["discard-granularity": "1099511627776"])?.granularity == 1 << 40)
    for granularity in ["1", "3", "513", "-1"] {
      #expect(Self.offender { _ = try limits(["discard-granularity": granularity]) } == "discard-granularity")
    }
    #expect(Self.offender { _ = try limits(["discard-alignment": "3"]) } == "discard-alignment")
    let large = ["sector-size": "4096", "discard-granularity": "8192", "discard-alignment": "512"]
    #expect(Self.offender { _ = try limits(large) } == "discard-alignment")
    #expect(try Self.device(["discard-granularity": "3"]).discard == nil)
  }

  @Test func unknownBitsOfInfoAreIgnored() throws {
    #expect(try Self.device(["info": "4294967295"]).info.contains(.readOnly))
    #expect(try Self.device(["info": "4"]).info == .readOnly)
    #expect(try !Self.device(["info": "8"]).info.contains(.readOnly))
    for value in ["4294967296", "ro", ""] {
      #expect(Self.offender { _ = try Self.device(["info": value]) } == "info")
    }
  }

  @Test(arguments: ["feature-barrier", "feature-flush-cache", "feature-discard", "feature-persistent"])
  func aFeatureIsZeroOrOne(key: String) throws {
    #expect(Self.offender { _ = try Self.device([key: "0"]) } == nil)
    #expect(Self.offender { _ = try Self.device([key: "1"]) } == nil)
    for value in ["2", "yes", "", "01", "1\n", String(repeating: "1", count: 4096)] {
      #expect(Self.offender { _ = try Self.device([key: value]) } == key)
    }
  }

  @Test func aSentenceNamesKeyAndValueAndNeverFloods() {
    let long = String(repeating: "9", count: 4096)
    do {
      _ = try Self.device(["sectors": long])
      Issue.record("taken")
    } catch {
      #expect("\(error)".contains("sectors is \"999"))
      #expect("\(error)".utf8.count < 200)
    }
  }

  @Test(arguments: [0, 1, 10, 11, 12, 32, 256, 512, 4096])
  func parametersAreBroughtDownToTheBackend(offered: Int) throws {
    let features = try Self.transport([
      "feature-max-indirect-segments": "\(offered)", "max-ring-page-order": "1",
    ])
    for wanted in [-5, 0, 1, 11, 12, 256, 4096, 100_000] {
      for pool in [1, 2, 3, 33, 960, 100_000] {
        var options = FrontendOptions()
        options.maxSegments = wanted
        options.poolPages = pool
        options.ringPageOrder = 4
        let chosen = TransportParameters(options, features)
        #expect(chosen.maxSegments >= 1)
        #expect(chosen.maxSegments <= max(offered, 11))
        #expect(chosen.maxSegments <= max(wanted, 1))
        // A request of the largest size and the list of its pages fit into the pool.
        #expect(chosen.maxSegments + BlkIf.indirectPages(forSegments: chosen.maxSegments) - 1 <= max(pool, 1))
        #expect(chosen.ringPageOrder == 1)
      }
    }
  }
}
