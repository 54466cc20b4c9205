// SPDX-License-Identifier: Apache-2.0
//
// The toolstack with a domain that does not make things easy for it.

import Platform
import Testing
import Xen

@testable import XenLoopback

@Suite struct ToolstackTests {
  private let device = LoopbackBlockDevice(virtualDevice: 51712, name: "xvda", frontend: DomainID(1))
  private let other = LoopbackBlockDevice(virtualDevice: 51728, name: "xvdb", frontend: DomainID(1))
  private let strangers = LoopbackBlockDevice(virtualDevice: 51712, name: "xvda", frontend: DomainID(2))

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

  @Test func migrationDoesNotTouchTheBackendOfAnotherDomainThatADomainNames() throws {
    let machine = try Machine()
    let store = machine.toolstack.store
    for device in [device, strangers] { try machine.toolstack.attach(device) }
    for path in [device.backendPath, strangers.backendPath] {
      try store.write("\(path)/feature-flush-cache", "1")
      try store.write("\(path)/state", "4")
    }
    try machine.join(1).openXenStore().write("device/vbd/51712/backend", strangers.backendPath)
    #expect(try machine.toolstack.migrate(DomainID(1)) == 0)
    #expect(try store.read("\(strangers.backendPath)/state") == "4")
    #expect(try store.read("\(strangers.backendPath)/feature-flush-cache") == "1")
  }

  @Test(arguments: [
    "//", "", "/local/domain/0/backend/vbd/1/51712/", "nonsense", "/no/such/thing", "@releaseDomain",
  ])
  func migrationPassesOverABackendThatIsNone(path: String) throws {
    let machine = try Machine()
    let store = machine.toolstack.store
    for device in [device, other] { try machine.toolstack.attach(device) }
    try store.write("\(other.backendPath)/feature-flush-cache", "1")
    try store.write("\(other.backendPath)/state", "4")
    try machine.join(1).openXenStore().write("device/vbd/51712/backend", path)
    #expect(try machine.toolstack.migrate(DomainID(1)) == 1)
    #expect(try store.read("\(other.backendPath)/state") == "1")
    #expect(try store.read("\(other.backendPath)/feature-flush-cache") == nil)
  }
}
