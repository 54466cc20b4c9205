// SPDX-License-Identifier: Apache-2.0
//
// The loopback put through the seam's conformance checks: in one process, with a child for each domain, and with the
// host in a third process.

import CXen
import Glibc
import Platform
import Testing
import Xen
import XenConformance

@testable import XenLoopback

/// The helper program that `swift build` puts beside the tests.
enum Helper {
  static var path: String {
    let resolved = realpath("/proc/self/exe", nil)
    defer { free(resolved) }
    let own = resolved.map { String(cString: $0) } ?? ""
    return own.split(separator: "/").dropLast().reduce("") { $0 + "/" + $1 } + "/xen-party"
  }

  static func party(_ machine: Machine, _ domain: UInt16) throws -> RemoteParty {
    try RemoteParty([path, machine.host.directory, "\(domain)"], domain: DomainID(domain))
  }
}

/// A node of domain 1 where domain 0, as the control domain, may write as well.
private let scratch = "/local/domain/1/data/conformance"

/// Who plays in which process.
enum Casting: CaseIterable, Sendable {
  /// Everybody in this one.
  case oneProcess
  /// The backend and the stranger in a process each.
  case remoteBackend
  /// The frontend in another process.
  case remoteFrontend
  /// Everybody in this process, mappings from the single locked maptrack list.
  case singleMaptrackList

  func cast(_ machine: Machine) throws -> ConformanceCast {
    func local(_ domain: UInt16) throws -> any ConformanceParty {
      LocalParty(
        try machine.join(domain, self == .singleMaptrackList ? .singleLockedList : .perVCPU),
        domain: DomainID(domain))
    }
    func remote(_ domain: UInt16) throws -> any ConformanceParty { try Helper.party(machine, domain) }
    return ConformanceCast(
      frontend: try self == .remoteFrontend ? remote(1) : local(1),
      backend: try self == .remoteBackend ? remote(0) : local(0),
      stranger: try self == .remoteBackend ? remote(2) : local(2), scratchPath: scratch)
  }
}

@Suite struct ConformanceTests {
  @Test(arguments: Casting.allCases, ConformanceCheck.grants + ConformanceCheck.events)
  func grantsAndEventChannels(_ casting: Casting, _ check: ConformanceCheck) throws {
    let machine = try Machine()
    try check(casting.cast(machine))
  }

  @Test(arguments: [Casting.oneProcess, .remoteBackend, .remoteFrontend], ConformanceCheck.store)
  func xenstore(_ casting: Casting, _ check: ConformanceCheck) throws {
    let machine = try Machine()
    try check(casting.cast(machine))
  }
}
