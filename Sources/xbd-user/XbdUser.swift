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
    for descriptor in [STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO] where fcntl(descriptor, F_GETFD) < 0 {
      // The lowest that is free. A result that nobody takes is an error all the same.
      _ = open("/dev/null", descriptor == STDOUT_FILENO ? O_RDONLY : O_RDWR)
    }
    main(nil)
  }
}

/// The version of the program and its libraries.
enum Version {
  static let text = "0.1.0"
}
