// SPDX-License-Identifier: Apache-2.0

import ArgumentParser
import XenLoopback
import Xen

/// `xbd-user loopback migrate`: what a domain finds after it was moved, without moving it.
struct LoopbackMigrateCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "migrate",
    abstract: "Migrate a domain of a loopback host to where it is.",
    discussion: """
      Everything that the domain shares and every event channel of it becomes useless, and its block devices' nodes \
      are made anew in state 1, as after "xl migrate" or "xl restore". A backend that runs starts again from its \
      nodes, or is to be started again.
      """)

  @Argument(help: "The domain; 1 has the frontend.")
  var domain: UInt16

  @Argument(help: "The directory of a running loopback host.")
  var directory: String

  func run() throws {
    let devices = try LoopbackToolstack(directory: directory).migrate(DomainID(domain))
    Console.line("domain \(domain) has migrated with \(devices) block device(s)")
  }
}
