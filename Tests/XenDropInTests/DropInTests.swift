// SPDX-License-Identifier: Apache-2.0
//
// The drop-in from outside: our libxen adapters pass the seam's conformance checks over it, on either side and on
// both, and a C program walks the ABI function by function.

import Glibc
import Testing
import Xen
import XenConformance
import XenLoopback

/// Who goes through libxen and the drop-in; the others use the loopback's own client.
enum DropInCasting: CaseIterable, Sendable {
  case everybody
  case frontend
  case backend

  func cast(_ machine: Machine) throws -> ConformanceCast {
    func party(_ domain: UInt16, _ isDropIn: Bool) throws -> any ConformanceParty {
      isDropIn ? try machine.libXenParty(domain) : try machine.loopbackParty(domain)
    }
    return ConformanceCast(
      frontend: try party(1, self != .backend), backend: try party(0, self != .frontend),
      stranger: try party(2, self == .everybody), scratchPath: "/local/domain/1/data/conformance")
  }
}

@Suite struct DropInTests {
  @Test(arguments: DropInCasting.allCases, ConformanceCheck.grants + ConformanceCheck.events)
  func theLibXenAdaptersConformOverIt(_ casting: DropInCasting, _ check: ConformanceCheck) throws {
    let machine = try Machine()
    try check(casting.cast(machine))
  }

  @Test(arguments: ConformanceCheck.store)
  func libxenstoreConformsThroughItsSocket(_ check: ConformanceCheck) throws {
    let machine = try Machine()
    try check(DropInCasting.everybody.cast(machine))
  }

  @Test func everyFunctionOfTheABIDoesWhatLinuxDoes() throws {
    let machine = try Machine(pageLimit: 64)
    let outcome = try run([Built.directory + "/xen-walk"], environment: machine.environment(1))
    #expect(outcome.status == 0, "\(outcome.output)")
    #expect(outcome.output.contains(" checks, 0 failed"), "\(outcome.output)")
  }

  @Test func whatACallerGetsWrongIsAnErrnoAndEndsNoProcess() throws {
    let machine = try Machine(pageLimit: 64)
    let outcome = try run([Built.directory + "/xen-walk", "misuse"], environment: machine.environment(1))
    #expect(outcome.status == 0, "\(outcome.output)")
    #expect(outcome.output.contains("6 checks, 0 failed"), "\(outcome.output)")
  }

  @Test func allHandlesOfAProcessAreOneJoin() throws {
    let machine = try Machine()
    let outcome = try run([Built.directory + "/xen-walk", "join"], environment: machine.environment(1))
    #expect(outcome.status == 0, "\(outcome.output)")
    #expect(outcome.output.contains("8 checks, 0 failed"), "\(outcome.output)")
  }

  @Test func withoutAHostOpeningFailsWithOneLine() throws {
    let machine = try Machine()
    var environment = machine.environment(1)
    environment.removeAll { $0.hasPrefix("XBD_LOOPBACK=") }
    let outcome = try run([Built.directory + "/xen-walk", "open"], environment: environment)
    #expect(outcome.status == 0, "\(outcome.output)")
    #expect(outcome.output.contains("xengntshr_open: XBD_LOOPBACK does not name"), "\(outcome.output)")
  }

  @Test func aProgramWithAnotherSwiftRuntimeStartsAndEndsUnderIt() throws {
    let machine = try Machine()
    // Wrong on purpose: it prints its usage. What counts is that two runtimes do not meet.
    let outcome = try run([Built.directory + "/xen-party"], environment: machine.environment(0))
    #expect(outcome.status == 0)
    #expect(outcome.output.contains("usage:"), "\(outcome.output)")
  }
}
