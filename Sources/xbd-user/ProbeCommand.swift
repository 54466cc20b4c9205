// SPDX-License-Identifier: Apache-2.0

import ArgumentParser
import Blkif
import XbdFront
import Xen

/// `xbd-user probe`: everything that can be known of a device without connecting to it.
struct ProbeCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "probe",
    abstract: "Show every xenstore node of a device, what it means, and what would be negotiated.")

  @Argument(help: "A virtual device number (51728), a name (xvdb), or the path of a frontend directory.")
  var device: String

  @Option(
    help: ArgumentHelp("Look at a loopback host instead of the machine's own Xen.", valueName: "directory"))
  var loopback: String?

  @Flag(help: "Print JSON.")
  var json = false

  @OptionGroup(title: "What to ask for")
  var negotiation: NegotiationArguments

  func run() throws {
    let system =
      try loopback.map { try Systems.loopback($0, domain: loopbackFrontend) }
      ?? Systems.libXen(instead: "\"xbd-user probe \(device) --loopback DIRECTORY\"")
    var options = FrontendOptions()
    negotiation.apply(to: &options)
    let probe = try DeviceProbe(
      device, in: try system.openXenStore(), options: options,
      kernel: system.sharesDevicesWithKernel ? KernelDriver() : nil)
    let report = Report(probe, options)
    if json { return try Console.result(try JSONText.encode(report)) }
    let lines =
      ["\(probe.location.device), backend in domain \(probe.location.backendDomain)"]
      + describe("frontend", probe.location.frontend, probe.frontendNodes)
      + describe("backend", probe.location.backend, probe.backendNodes)
      + ["", "would be negotiated"]
      + report.verdicts.map { what, value in "  \(pad(what, 24))\(value)" }
    try Console.result(lines.joined(separator: "\n"))
  }

  private func describe(_ end: String, _ path: String, _ nodes: [DeviceProbe.Node]) -> [String] {
    ["", "\(end)  \(path)"]
      + nodes.map { node in
        let (key, value) = (ForeignText.printable(node.key), ForeignText.printable(node.value))
        return "  \(pad(key, 32))\(pad(value, 22))\(node.meaning ?? "unknown to blkif.h")"
      }
  }

  private func pad(_ text: String, _ width: Int) -> String {
    text + String(repeating: " ", count: max(1, width - text.count))
  }
}

/// A probe as JSON, and its verdicts as text.
private struct Report: Encodable {
  struct Node: Encodable {
    let key: String
    let value: String
    let meaning: String?
  }
  let device: UInt32
  let name: String?
  let backendDomain: UInt16
  let frontend: String
  let backend: String
  let kernelDriver: String?
  let frontendNodes: [Node]
  let backendNodes: [Node]
  let ringPages: Int?
  let queues: Int?
  let maxSegments: Int?
  let sectors: UInt64?
  let sectorSize: Int?
  let readOnly: Bool?
  let flush: String?
  let discard: Bool?
  let persistent: Bool?
  let problems: [String]

  init(_ probe: DeviceProbe, _ options: FrontendOptions) {
    device = probe.location.device.number
    name = probe.location.device.name
    backendDomain = probe.location.backendDomain.rawValue
    frontend = probe.location.frontend
    backend = probe.location.backend
    kernelDriver = probe.kernelDriver
    frontendNodes = probe.frontendNodes.map { Node(key: $0.key, value: $0.value, meaning: $0.meaning) }
    backendNodes = probe.backendNodes.map { Node(key: $0.key, value: $0.value, meaning: $0.meaning) }
    var problems: [String] = []
    let transport = try? probe.transport.get()
    let features = try? probe.features.get()
    if case .failure(let node) = probe.transport { problems.append("\(node)") }
    if case .failure(let node) = probe.features {
      problems.append("\(node) (backends that never connected have not published it yet)")
    }
    if let driver = probe.kernelDriver { problems.append("the kernel's driver \"\(driver)\" has the device") }
    ringPages = transport.map { 1 << $0.ringPageOrder }
    queues = transport?.queueCount
    maxSegments = transport?.maxSegments
    sectors = features?.sectorCount
    sectorSize = features?.sectorSize
    readOnly = features.map { !$0.info.isDisjoint(with: [.readOnly, .cdrom]) }
    flush = features.map {
      switch $0.flush(options) {
      case .flushCache: "flush"
      case .barrier: "barrier"
      case .none: "none"
      }
    }
    discard = features.map { $0.discard(options) != nil }
    persistent = features?.keepsGrants(options)
    self.problems = problems
  }

  var verdicts: [(String, String)] {
    var lines: [(String, String)] = []
    if let ringPages, let queues { lines.append(("rings", "\(queues) of \(ringPages) pages each")) }
    if let maxSegments {
      let kind = maxSegments > BlkIf.maxDirectSegments ? "indirect" : "direct"
      lines.append(("largest request", "\(maxSegments) segments, \(maxSegments * 4) KiB, \(kind)"))
    }
    if let sectors, let sectorSize {
      lines.append(("size", "\(sectors * 512) bytes, sectors of \(sectorSize)"))
    }
    if let readOnly { lines.append(("writes", readOnly ? "refused" : "accepted")) }
    if let flush { lines.append(("durability by", flush)) }
    if let discard { lines.append(("discard", discard ? "yes" : "no")) }
    if let persistent { lines.append(("grants stay mapped", persistent ? "yes" : "no")) }
    for problem in problems { lines.append(("problem", problem)) }
    return lines
  }
}
