// SPDX-License-Identifier: Apache-2.0
//
// Which Xen a command works on: the machine's own, or a loopback host by its directory.

import ArgumentParser
import Glibc
import XenLoopback
import Xen

/// The domain that a frontend lives in on a loopback host.
let loopbackFrontend = DomainID(1)

/// What a loopback's domain has grants for.
func checkGntallocLimit(_ pages: Int) throws {
  guard (1...32760).contains(pages) else { throw ValidationError("--gntalloc-limit takes 1 to 32760 pages") }
}

/// Finds the Xen that a command works on.
enum Systems {
  /// The machine's own Xen, if it has one, or what a preloaded drop-in puts in its place.
  ///
  /// Asked are the libraries and not the files, because a drop-in has none. libxenevtchn comes first: it alone fails
  /// without a line of its own on stderr.
  ///
  /// - Parameter instead: a command that works without; it ends the sentence.
  static func libXen(instead: String) throws -> any XenSystem {
    try libXen(grants: "/dev/xen/gntalloc", instead: instead)
  }

  /// The same for a backend, which maps grants instead of making them.
  static func libXenBackend(instead: String) throws -> any XenSystem {
    try libXen(grants: "/dev/xen/gntdev", instead: instead)
  }

  private static func libXen(grants: String, instead: String) throws -> any XenSystem {
    let system = LibXenSystem()
    do throws(XenError) {
      _ = try system.openEventChannels()
    } catch  where access("/dev/xen/evtchn", F_OK) != 0 {
      throw missing("/dev/xen/evtchn", instead)
    }
    // What a drop-in has is no file of this machine.
    if system.sharesDevicesWithKernel, access("/dev/xen/evtchn", F_OK) == 0, access(grants, F_OK) != 0 {
      throw missing(grants, instead)
    }
    return system
  }

  private static func missing(_ device: String, _ instead: String) -> Failure {
    if let directory = getenv("XBD_LOOPBACK") {
      return Failure(
        "XBD_LOOPBACK is set, but no loopback host answers in \(String(cString: directory)) or "
          + "\(DropIn.name) is not preloaded; start with \"xbd-user loopback exec\"")
    }
    if access("/proc/xen", F_OK) == 0 || access("/sys/hypervisor/type", F_OK) == 0 {
      let module = device.split(separator: "/").last.map { "xen-\($0)" } ?? ""
      return Failure("\(device) is missing: load the module with \"modprobe \(module)\"")
    }
    return Failure("this machine is no Xen guest (\(device) is missing); \(instead) works here")
  }

  /// A domain of a loopback host that runs already.
  static func loopback(_ directory: String, domain: DomainID) throws -> any XenSystem {
    try LoopbackDomain(joining: directory, domain: domain)
  }
}
