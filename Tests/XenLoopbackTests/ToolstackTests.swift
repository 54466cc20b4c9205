// SPDX-License-Identifier: Apache-2.0
//
// The toolstack with a domain that does not make things easy for it.

import Platform
import Testing
import Xen

@testable import XenLoopback

@Suite struct ToolstackTests {
  private let device = LoopbackBlockDevice(virtualDevice: 51712, name: "xvda", frontend: DomainID(1))

  @Test func aDiskIsAttachedToAGuestThatHasUsedItsNodesUp() throws {
    let machine = try Machine()
    let guest = try machine.join(1).openXenStore()
    var count = 0
    while count < 2000, (try? guest.write("data/d\(count / 50)/n\(count)", "")) != nil { count += 1 }
    #expect(count > 900 && count < 1000)
    try machine.toolstack.attach(device)
    #expect(try guest.read("device/vbd/51712/state") == "1")
    try machine.toolstack.forget(device)
  }

  @Test func aGuestsTransactionIsHeldToItsQuotaAtItsEnd() throws {
    let machine = try Machine()
    let (guest, second) = (try machine.join(1).openXenStore(), try machine.join(1).openXenStore())
    #expect {
      try guest.transaction { (store) throws(XenError) in
        try store.write("feature/late", "")
        var count = 0
        while count < 2000, (try? second.write("data/d\(count / 50)/n\(count)", "")) != nil { count += 1 }
      }
    } throws: { ($0 as? XenError)?.code == .limitReached }
    #expect(try guest.read("feature/late") == nil)
  }
}
