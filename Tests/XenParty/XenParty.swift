// SPDX-License-Identifier: Apache-2.0
//
// The other process of a cross-process check: `xen-party host DIRECTORY` is a loopback host until its input ends,
// `xen-party DIRECTORY DOMAIN` a party of a loopback domain, `xen-party libxen DOMAIN` one of the machine's own Xen,
// and `xen-party costs DIRECTORY` a measurement. `xen-party checks PATH PROGRAM FRONTEND BACKEND STRANGER` runs every
// check with three domains, each acted for by a `PROGRAM DOMAIN` that it starts: the Xen lab's way to those of a real
// Xen.

import Glibc
import Xen
import XenConformance
import XenLoopback

@main struct XenParty {
  static func main() throws {
    let arguments = CommandLine.arguments
    if arguments.count == 7, arguments[1] == "checks" {
      return try runChecks(scratchPath: arguments[2], program: arguments[3], domains: arguments[4...])
    }
    guard arguments.count == 3 else {
      return print("usage: xen-party host DIRECTORY | DIRECTORY DOMAIN | libxen DOMAIN | checks ...")
    }
    if arguments[1] == "host" {
      let host = try LoopbackHost(directory: arguments[2])
      print("ready")
      while readLine() != nil {}
      host.stop()
      return
    }
    if arguments[1] == "costs" { return try printCosts(arguments[2]) }
    let domain = DomainID(UInt16(arguments[2]) ?? 0)
    if arguments[1] == "libxen" {
      serveParty(LocalParty(LibXenSystem(), domain: domain))
    } else {
      serveParty(LocalParty(try LoopbackDomain(joining: arguments[1], domain: domain), domain: domain))
    }
  }

  /// Runs every check, and prints "ok NAME" or "FAIL NAME: what was seen" for each.
  private static func runChecks(
    scratchPath: String, program: String, domains: ArraySlice<String>
  ) throws {
    let parties = try domains.map { number in
      try RemoteParty([program, number], domain: DomainID(UInt16(number) ?? 0))
    }
    let cast = ConformanceCast(
      frontend: parties[0], backend: parties[1], stranger: parties[2], scratchPath: scratchPath)
    for check in ConformanceCheck.all {
      do {
        try check(cast)
        print("ok \(check)")
      } catch {
        print("FAIL \(check): \(error)")
      }
      fflush(nil)
    }
  }
}
