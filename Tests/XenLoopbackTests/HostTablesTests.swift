// SPDX-License-Identifier: Apache-2.0
//
// Any process of a host may write anything into its tables. The host goes on and stays within them.

import Synchronization
import Testing

@testable import XenLoopback

@Suite struct HostTablesTests {
  /// A machine with a domain and a process that has joined it.
  private func machine() throws -> (HostMachine, HostDomain, HostJoin) {
    let machine = HostMachine()
    try machine.createDomain(0, pageLimit: 64, frameLimit: 4)
    let join = try machine.join(0, disconnect: {})
    return (machine, try #require(machine.domains[0]), join)
  }

  // Found by Tests/fuzz/run control.
  @Test(arguments: [0, 7, 32769, UInt32.max] as [UInt32])
  func regression_aHighWaterMarkOutsideTheTableDoesNotLeadTheHostOutside(mark: UInt32) throws {
    let (machine, domain, join) = try machine()
    domain.memory.header.grantHighWater.storeRelaxed(mark)
    machine.end(join)
    #expect(domain.joins.isEmpty)
  }

  @Test(arguments: [4096, 1 << 20, UInt32.max] as [UInt32])
  func regression_aPeersPortOutsideTheTableDoesNotLeadTheHostOutside(port: UInt32) throws {
    let (machine, domain, _) = try machine()
    domain.memory.port(1).state.storeRelaxed(
      PortEntry.state(.interdomain, domain: 0, port: port))
    machine.send(domain, 1, of: 0)
    #expect(PortEntry.port(PortEntry.state(.interdomain, domain: 0, port: port)) < 4096)
  }
}
