// SPDX-License-Identifier: Apache-2.0
//
// A loopback host of its own for a test, and children that meet it in place of Xen.

import TestSupport
import Glibc
import Platform
import Testing
import Xen
import XenConformance
import XenLoopback

/// A host with domains 0, 1 and 2, gone with the fixture.
final class Machine {
  let host: LoopbackHost

  init(pageLimit: Int = LoopbackDefaults.pageLimit) throws {
    host = try LoopbackHost(directory: makeTemporaryDirectory("dropin"))
    let toolstack = try LoopbackToolstack(directory: host.directory)
    for domain: UInt16 in [1, 2] { try toolstack.createDomain(DomainID(domain), pageLimit: pageLimit) }
  }

  deinit {
    host.stop()
    _ = rmdir(host.directory)
  }

  /// The environment in which a program is a process of a domain.
  func environment(_ domain: UInt16) -> [String] {
    [
      "LD_PRELOAD=\(Built.directory)/libxenloopback.so", "XBD_LOOPBACK=\(host.directory)",
      "XBD_LOOPBACK_DOMAIN=\(domain)", "XENSTORED_PATH=\(host.directory)/dom\(domain)/xenstored.sock",
    ]
  }

  /// Our own libxen adapters in a child, over the drop-in.
  func libXenParty(_ domain: UInt16) throws -> RemoteParty {
    try RemoteParty(
      [Built.directory + "/xen-party", "libxen", "\(domain)"], domain: DomainID(domain),
      environment: environment(domain))
  }

  /// The loopback itself, in this process.
  func loopbackParty(_ domain: UInt16) throws -> LocalParty {
    LocalParty(
      try LoopbackDomain(joining: host.directory, domain: DomainID(domain)), domain: DomainID(domain))
  }
}

/// What `swift build` puts beside the tests.
enum Built {
  static let directory: String = {
    guard let resolved = realpath("/proc/self/exe", nil) else { return "." }
    defer { free(resolved) }
    let path = String(cString: resolved)
    return path.lastIndex(of: "/").map { String(path[..<$0]) } ?? "."
  }()
}

/// A program run to its end.
struct Outcome {
  let status: Int32
  let output: String
}

/// Runs a program with exactly the given environment, its two outputs together.
func run(_ program: [String], environment: [String]) throws -> Outcome {
  var ends: [Int32] = [-1, -1]
  guard pipe(&ends) == 0 else { throw XenError(errno: .current, "pipe") }
  _ = fcntl(ends[0], F_SETFD, FD_CLOEXEC)
  _ = fcntl(ends[1], F_SETFD, FD_CLOEXEC)
  var actions = posix_spawn_file_actions_t()
  posix_spawn_file_actions_init(&actions)
  defer { posix_spawn_file_actions_destroy(&actions) }
  posix_spawn_file_actions_adddup2(&actions, ends[1], 1)
  posix_spawn_file_actions_adddup2(&actions, ends[1], 2)
  var arguments: [UnsafeMutablePointer<CChar>?] = program.map { strdup($0) } + [nil]
  var variables: [UnsafeMutablePointer<CChar>?] = environment.map { strdup($0) } + [nil]
  defer { for string in arguments + variables { free(string) } }
  var child: pid_t = 0
  let code = posix_spawn(&child, program[0], &actions, nil, &arguments, &variables)
  close(ends[1])
  defer { close(ends[0]) }
  guard code == 0 else { throw XenError(.system, "cannot start \(program[0]): \(code)") }
  var output: [UInt8] = []
  var chunk = [UInt8](repeating: 0, count: 4096)
  while true {
    let got = read(ends[0], &chunk, chunk.count)
    if got <= 0 { break }
    output.append(contentsOf: chunk[..<got])
  }
  var status: Int32 = 0
  waitpid(child, &status, 0)
  let signal = status & 0x7f
  return Outcome(
    status: signal == 0 ? (status >> 8) & 0xff : 128 + signal, output: String(decoding: output, as: UTF8.self)
  )
}
