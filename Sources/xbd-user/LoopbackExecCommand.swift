// SPDX-License-Identifier: Apache-2.0

import ArgumentParser
import CXen
import Glibc
import Platform
import XenLoopback
import Xen

/// `xbd-user loopback exec`: any program as a domain of a loopback host.
struct LoopbackExecCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "exec",
    abstract: "Run a program that is linked against Xen's libraries as a domain of a loopback host.",
    usage: "xbd-user loopback exec [--domain <n>] [<directory>] -- <program> ...",
    discussion: """
      Without a directory, a host is started for the program and ends with it. The program finds \
      libxenloopback.so in LD_PRELOAD, the domain's xenstore in XENSTORED_PATH, and the host and the domain in \
      XBD_LOOPBACK and XBD_LOOPBACK_DOMAIN. Its exit status is passed on.
      """)

  @OptionGroup var place: LoopbackPlace

  @Flag(help: ArgumentHelp("End the program when whoever started this command ends.", visibility: .hidden))
  var withParent = false

  @Argument(parsing: .postTerminator, help: "The program and its arguments, after \"--\".")
  var program: [String] = []

  mutating func validate() throws {
    guard !program.isEmpty else {
      throw ValidationError("name a program after \"--\": xbd-user loopback exec -- xenstore-ls")
    }
  }

  func run() throws {
    if withParent { _ = cxen_end_with_parent(SIGTERM) }
    try place.run(program)
  }
}

/// `xbd-user loopback shell`: a shell to look around in.
struct LoopbackShellCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "shell",
    abstract: "Open $SHELL as a domain of a loopback host; xenstore-ls and the like work in it.")

  @OptionGroup var place: LoopbackPlace

  func run() throws {
    let shell = getenv("SHELL").map { String(cString: $0) } ?? ""
    try place.run([shell.isEmpty ? "/bin/sh" : shell])
  }
}

/// A host and a domain of it for a program to run in.
struct LoopbackPlace: ParsableArguments {
  @Option(help: ArgumentHelp("The domain; 0, the default, has the backends, 1 the frontend.", valueName: "n"))
  var domain: UInt16 = 0

  @Argument(help: "The directory of a running loopback host; without one, a host of its own.")
  var directory: String?

  /// Runs the program to its end.
  ///
  /// - Throws: `ExitCode` with its status unless that is 0.
  func run(_ program: [String]) throws {
    let library = try DropIn.library()
    if let directory {
      // The look says in a sentence what the program would say in its own way.
      let place = try LoopbackDomain(joining: directory, domain: DomainID(domain))
      let variables = DropIn.variables(library, place)
      withExtendedLifetime(place) {}
      throw DropIn.replaceProcess(program, variables)
    }
    let signals = try Signals([SIGTERM, SIGINT, SIGHUP, SIGCHLD])
    let temporary = try TemporaryDirectory()
    let host = try LoopbackHost(directory: temporary.path + "/xen")
    let toolstack = try LoopbackToolstack(directory: host.directory)
    for number in Set([loopbackFrontend.rawValue, domain]) where number != 0 {
      try toolstack.createDomain(DomainID(number))
    }
    let place = try LoopbackDomain(joining: host.directory, domain: DomainID(domain))
    let child = try ChildCommand(program, environment: DropIn.environment(library, place))
    var status: Int32?
    var wait = pollfd(fd: signals.fileDescriptor, events: Int16(POLLIN), revents: 0)
    while status == nil {
      _ = poll(&wait, 1, -1)
      while let signal = signals.next() {
        // A terminal sends SIGINT to the program by itself.
        if signal == SIGTERM || signal == SIGHUP { child.terminate() }
      }
      status = child.exitStatus()
    }
    host.stop()
    withExtendedLifetime((temporary, place)) {}
    if let status, status != 0 { throw ExitCode(status) }
  }
}
