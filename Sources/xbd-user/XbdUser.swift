// SPDX-License-Identifier: Apache-2.0

import ArgumentParser

/// The program: one command for each file beside this one.
@main
struct XbdUser: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "xbd-user",
    abstract: "A Xen paravirtual block frontend in user space.",
    discussion: """
      Connects to a virtual block device and serves it as NBD on a local socket. Without Xen, a loopback \
      stands in for it: try "xbd-user serve --loopback memory:1G".
      """,
    version: Version.text,
    subcommands: [
      ServeCommand.self, ListCommand.self, ProbeCommand.self, ResetCommand.self, MeasureCommand.self,
      BackendCommand.self, LoopbackCommand.self,
    ])
}

/// The version of the program and its libraries.
enum Version {
  static let text = "0.1.0"
}
