// SPDX-License-Identifier: Apache-2.0
//
// Which Xen a command works on: the machine's own, or a loopback host by its directory.

import ArgumentParser
import Glibc
import XenLoopback
import Xen

/// The domain that a frontend lives in on a loopback host.
let loopbackFrontend = DomainID(1)

/// Finds the Xen that a command works on.
enum Systems {
  /// The machine's own Xen, if it has one.
  ///
  /// - Parameter instead: a command that works without; it ends the sentence.
  static func libXen(instead: String) throws -> any XenSystem {
    for device in ["/dev/xen/gntalloc", "/dev/xen/evtchn"] where access(device, F_OK) != 0 {
      let module = device.split(separator: "/").last.map { "xen-\($0)" } ?? ""
      if access("/proc/xen", F_OK) == 0 || access("/sys/hypervisor/type", F_OK) == 0 {
        throw Failure("\(device) is missing: load the module with \"modprobe \(module)\"")
      }
      throw Failure("this machine is no Xen guest (\(device) is missing); \(instead) works here")
    }
    return LibXenSystem()
  }

  /// A domain of a loopback host that runs already.
  static func loopback(_ directory: String, domain: DomainID) throws -> any XenSystem {
    try LoopbackDomain(joining: directory, domain: domain)
  }
}
