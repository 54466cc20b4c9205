// SPDX-License-Identifier: Apache-2.0

import ArgumentParser
import Blkif
import FoundationEssentials
import XbdFront
import Xen

/// `xbd-user list`: the block devices of this domain.
struct ListCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "list",
    abstract: "Show this domain's virtual block devices, their backends and who drives them.")

  @Option(
    help: ArgumentHelp("Look at a loopback host instead of the machine's own Xen.", valueName: "directory"))
  var loopback: String?

  @Flag(help: "Print JSON.")
  var json = false

  func run() throws {
    let system =
      try loopback.map { try Systems.loopback($0, domain: loopbackFrontend) }
      ?? Systems.libXen(instead: "\"xbd-user list --loopback DIRECTORY\"")
    let devices = try DeviceSummary.all(
      in: try system.openXenStore(), kernel: system.sharesDevicesWithKernel ? KernelDriver() : nil)
    if json { return try Console.result(try JSONText.encode(devices.map(Row.init))) }
    guard !devices.isEmpty else { return try Console.result("this domain has no virtual block devices") }
    let head = Row.line("DEVICE", "FRONTEND", "BACKEND", "DOMAIN", "DRIVEN BY", "PATH")
    try Console.result(([head] + devices.map { Row($0).line }).joined(separator: "\n"))
  }

  private struct Row: Encodable {
    let number: UInt32
    let name: String?
    let frontend: String
    let frontendState: String
    let backend: String
    let backendState: String
    let backendDomain: UInt16?
    let driver: String?

    init(_ device: DeviceSummary) {
      number = device.device.number
      name = device.device.name
      frontend = device.frontend
      frontendState = device.frontendState.description
      backend = device.backend
      backendState = device.backendState.description
      backendDomain = device.backendDomain?.rawValue
      driver = device.kernelDriver
    }

    var line: String {
      let isOurs = driver == nil && frontendState.hasPrefix("4")
      return Self.line(
        name.map { "\($0) (\(number))" } ?? String(number), frontendState, backendState,
        backendDomain.map { String($0) } ?? "?",
        driver.map { "kernel (\($0))" } ?? (isOurs ? "user space" : "nobody"), backend)
    }

    static func line(_ columns: String...) -> String {
      let widths = [16, 18, 18, 7, 14]
      var line = ""
      for (column, width) in zip(columns, widths) {
        line += column + String(repeating: " ", count: max(1, width - column.count))
      }
      return line + (columns.last ?? "")
    }
  }
}
