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

@Suite struct ConformanceTests {
  @Test(arguments: ConformanceCheck.all)
  func inOneProcess(_ check: ConformanceCheck) throws {
    let machine = try Machine()
    func party(_ domain: UInt16) throws -> LocalParty {
      LocalParty(try machine.join(domain), domain: DomainID(domain))
    }
    try check(
      ConformanceCast(
        frontend: party(1), backend: party(0), stranger: party(2), scratchPath: scratch))
  }

  @Test(arguments: ConformanceCheck.all)
  func acrossProcesses(_ check: ConformanceCheck) throws {
    let machine = try Machine()
    try check(
      ConformanceCast(
        frontend: LocalParty(try machine.join(1), domain: DomainID(1)),
        backend: try Helper.party(machine, 0), stranger: try Helper.party(machine, 2), scratchPath: scratch))
  }

  @Test(arguments: ConformanceCheck.all)
  func withTheFrontendInAnotherProcess(_ check: ConformanceCheck) throws {
    let machine = try Machine()
    try check(
      ConformanceCast(
        frontend: try Helper.party(machine, 1),
        backend: LocalParty(try machine.join(0), domain: .dom0), scratchPath: scratch))
  }

  @Test(arguments: ConformanceCheck.all)
  func withTheSingleMaptrackList(_ check: ConformanceCheck) throws {
    let machine = try Machine()
    try check(
      ConformanceCast(
        frontend: LocalParty(try machine.join(1), domain: DomainID(1)),
        backend: LocalParty(try machine.join(0, .singleLockedList), domain: .dom0), scratchPath: scratch))
  }
}
