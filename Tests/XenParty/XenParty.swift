// SPDX-License-Identifier: Apache-2.0
//
// The other process of a cross-process check: `xen-party host DIRECTORY` is a loopback host until its input ends,
// `xen-party DIRECTORY DOMAIN` a party of a loopback domain, `xen-party libxen DOMAIN` one of the machine's own Xen,
// and `xen-party costs DIRECTORY` a measurement.

import Xen
import XenConformance
import XenLoopback

@main struct XenParty {
  static func main() throws {
    let arguments = CommandLine.arguments
    guard arguments.count == 3 else {
      return print("usage: xen-party host DIRECTORY | DIRECTORY DOMAIN | libxen DOMAIN")
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
}
