// SPDX-License-Identifier: Apache-2.0

import ArgumentParser
import Glibc
import Platform
import XenLoopback
import Xen

/// `xbd-user loopback`: the loopback Xen, as a host for other processes and as a place to run programs in.
struct LoopbackCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "loopback",
    abstract: "Run a loopback Xen for other processes to join, or a program as one of its domains.",
    discussion: """
      "xbd-user loopback DIRECTORY" is a host; start a backend with "xbd-user backend IMAGE --loopback DIRECTORY" \
      and a frontend with "xbd-user serve DEVICE --loopback DIRECTORY". Programs that know nothing of the \
      loopback, but are linked against Xen's libraries, run with "exec" and "shell".
      """,
    subcommands: [
      LoopbackHostCommand.self, LoopbackExecCommand.self, LoopbackShellCommand.self,
      LoopbackMigrateCommand.self, LoopbackStatusCommand.self,
    ],
    defaultSubcommand: LoopbackHostCommand.self)
}

/// `xbd-user loopback host`: a host of the loopback Xen, for backends and frontends in processes of their own.
struct LoopbackHostCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "host",
    abstract: "Run a loopback host in a directory until SIGTERM or SIGINT.")

  @Argument(help: "A private directory for the host; made when it does not exist.")
  var directory: String

  @Option(help: ArgumentHelp("Pages that the frontend's domain may share.", valueName: "pages"))
  var gntallocLimit = LoopbackDefaults.pageLimit

  mutating func validate() throws { try checkGntallocLimit(gntallocLimit) }

  func run() throws {
    let signals = try Signals([SIGTERM, SIGINT, SIGHUP])
    let host = try LoopbackHost(directory: directory)
    try LoopbackToolstack(directory: host.directory).createDomain(
      loopbackFrontend, pageLimit: gntallocLimit)
    Console.line(
      "loopback Xen in \(host.directory); xenstore of domain 0: \(host.directory)/dom0/xenstored.sock")
    var wait = pollfd(fd: signals.fileDescriptor, events: Int16(POLLIN), revents: 0)
    while signals.next() == nil { _ = poll(&wait, 1, -1) }
    host.stop()
  }
}
