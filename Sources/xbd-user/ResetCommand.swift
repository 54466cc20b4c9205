// SPDX-License-Identifier: Apache-2.0

import ArgumentParser
import Blkif
import XbdFront
import Xen

/// `xbd-user reset`: closes what a frontend that died has left behind.
struct ResetCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "reset",
    abstract: "Close a device that a dead frontend has left connected, so that the next one finds it fresh.",
    discussion: """
      Nobody resets the nodes of a frontend that died. "serve" closes what it finds before it connects, so this is \
      for other frontends, and for looking at a backend. Goes through Closing (5) and Closed (6) to Initialising (1), \
      waits for the backend at each step, and removes the ring's nodes.
      """)

  @Argument(help: "A virtual device number (51728), a name (xvdb), or the path of a frontend directory.")
  var device: String

  @Option(
    help: ArgumentHelp("On a loopback host instead of the machine's own Xen.", valueName: "directory"))
  var loopback: String?

  @Option(help: "Seconds that the backend may take for each step.")
  var timeout = 30

  @Flag(name: .shortAndLong, help: "Say more on stderr.")
  var verbose: Int

  mutating func validate() throws {
    guard (1...86400).contains(timeout) else { throw ValidationError("--timeout takes 1 to 86400 seconds") }
  }

  func run() throws {
    let system =
      try loopback.map { try Systems.loopback($0, domain: loopbackFrontend) }
      ?? Systems.libXen(instead: "\"xbd-user reset \(device) --loopback DIRECTORY\"")
    let (front, back) = try BlockDevice.reset(
      device, on: system, timeout: .seconds(timeout), logger: Log.start(verbosity: verbose))
    Console.line("\(device): frontend \(front), backend \(back)")
  }
}
