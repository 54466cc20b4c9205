// SPDX-License-Identifier: Apache-2.0
//
// The control thread's work, done on the test's thread, where what it meets cannot be brought about from outside.

import Blkif
import Platform
import SystemPackage
import Testing
import Xen

@testable import XbdFront

@Suite struct DeviceDriverTests {
  @Test(arguments: [0, 1])
  func aQueueForWhichThereIsNoDescriptorIsAFailureThatSaysSo(queue: Int) throws {
    let system = FakeSystem(backend: ["multi-queue-max-queues": "2"])
    system.answer(FakeSystem.honest)
    var options = system.options
    options.queueCount = 2
    do {
      let (driver, shared) = try system.driver(options)
      var made = 0
      driver.makeWakeup = { () throws(Errno) in
        guard made < queue else { throw .tooManyOpenFiles }
        made += 1
        return try EventCounter()
      }
      driver.run()
      guard case .failure(let error)? = shared.outcome.current else {
        Issue.record("no failure: \(shared.state)")
        return
      }
      #expect(error.code == .system)
      for part in ["queue \(queue)", "ulimit -n", "device/vbd/51728"] {
        #expect(error.message.contains(part), "\(error)")
      }
      #expect(system.ownStates.suffix(3) == ["4", "5", "6"])
      #expect(system.channels.with { $0.allSatisfy { $0.with { $0.ports.isEmpty } } })
    }
    #expect(system.grants.liveCount == 0)
  }

  @Test func aLimitThatHoldsIsToldOnceForEachQueueAndTriedAgain() throws {
    let system = FakeSystem()
    system.answer(FakeSystem.honest)
    let said = Said()
    let (driver, shared) = try system.driver(logger: said.logger)
    for text in ["16 pages", "16 pages", "16 pages", "8 pages", "8 pages"] {
      shared.post(.report(.limit(queue: 0, text)))
      shared.post(.report(.limit(queue: 1, text)))
    }
    shared.post(.close(by: nil))
    driver.run()
    let warnings = said.all.filter { $0.hasSuffix(" pages") }.map { $0.suffix(8) }
    #expect(warnings == ["16 pages", "16 pages", " 8 pages", " 8 pages"])
    // Whatever was said of it.
    #expect(driver.limited == [0, 1])
    #expect(driver.growDeadline != nil)
  }
}
