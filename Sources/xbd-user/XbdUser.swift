// SPDX-License-Identifier: Apache-2.0

import ArgumentParser
import Glibc

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

  static func main() {
    // What is opened first must not be what others write to: an image that got the number of stderr would have log
    // lines written into it.
    while case let null = open("/dev/null", O_RDWR), null >= 0 {
      guard null <= STDERR_FILENO else {
        close(null)
        break
      }
    }
    main(nil)
  }
}

/// The version of the program and its libraries.
enum Version {
  static let text = "0.1.0"
}
