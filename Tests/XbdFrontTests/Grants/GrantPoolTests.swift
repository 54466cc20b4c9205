// SPDX-License-Identifier: Apache-2.0

import TestSupport
import Blkif
import Testing
import Xen

@testable import XbdFront

@Suite struct GrantPoolTests {
  static func pool(_ sharing: FakeGrants, _ mode: GrantMode = .persistent, bound: Int) -> GrantPool {
    GrantPool(sharing: sharing, backend: .dom0, mode: mode, bound: bound)
  }

  static func pages(_ list: PageList, _ pool: borrowing GrantPool) -> [Int32] {
    var result: [Int32] = []
    var page = list.first
    for _ in 0..<list.count {
      result.append(page)
      page = pool.next(page)
    }
    return result
  }

  @Test func theLastPagesGivenBackAreTheFirstToBeTakenInTheirOrder() throws {
    var pool = Self.pool(FakeGrants(), bound: 64)
    let firstTaken = pool.take(5)
    let first = try #require(firstTaken)
    let secondTaken = pool.take(7)
    let second = try #require(secondTaken)
    let firstPages = Self.pages(first, pool)
    let secondPages = Self.pages(second, pool)
    pool.put(first)
    pool.put(second)
    let bothTaken = pool.take(12)
    let both = try #require(bothTaken)
    let order = Self.pages(both, pool)
    #expect(order == secondPages + firstPages)
    let neighbours = zip(secondPages, secondPages.dropFirst()).allSatisfy { $1 == $0 + 1 }
    #expect(neighbours)
  }

  @Test func chunksAreSharedAtOnceAndNeverPastTheBound() throws {
    let sharing = FakeGrants()
    var pool = Self.pool(sharing, bound: 150)
    _ = pool.take(1)
    #expect(sharing.shareCalls == [64])
    _ = pool.take(64)
    #expect(sharing.shareCalls == [64, 64])
    _ = pool.take(85)
    #expect(sharing.shareCalls == [64, 64, 22])
    let over = pool.take(1) == nil
    #expect(over)
    #expect(sharing.liveCount == 150)
    #expect(pool.highWater == 150)
    #expect(pool.limitMessage == nil)
  }

  @Test(arguments: [1, 2, 10, 63, 64, 65, 100])
  func theDomainsLimitIsUsedToTheLastPageAndTold(limit: Int) throws {
    let sharing = FakeGrants(limit: limit)
    var pool = Self.pool(sharing, bound: 200)
    var lists: [PageList] = []
    while let list = pool.take(1) { lists.append(list) }
    #expect(lists.count == limit)
    #expect(pool.bound == limit)
    let messageTaken = pool.takeLimitMessage()
    let message = try #require(messageTaken)
    #expect(message.contains("\(limit) of 200 pages"))
    let again = pool.takeLimitMessage()
    #expect(again == nil)
    let calls = sharing.shareCalls.count
    _ = pool.take(1)
    #expect(sharing.shareCalls.count == calls, "the limit is not tried again and again")
    for list in lists { pool.put(list) }
    let all = pool.take(limit)
    #expect(all?.count == Int32(limit))
  }

  @Test func perRequestSharesAndUnsharesExactly() throws {
    let sharing = FakeGrants()
    var pool = Self.pool(sharing, .perRequest, bound: 20)
    let oneTaken = pool.take(3)
    let one = try #require(oneTaken)
    let twoTaken = pool.take(11)
    let two = try #require(twoTaken)
    #expect(sharing.shareCalls == [3, 11])
    #expect(sharing.liveCount == 14)
    let tooMany = pool.take(7) == nil
    #expect(tooMany)
    pool.put(one)
    #expect(sharing.liveCount == 11)
    pool.put(two)
    #expect(sharing.liveCount == 0)
    #expect(pool.grantsMade == 14)
    #expect(pool.grantsEnded == 14)
    #expect(pool.highWater == 14)
  }

  @Test func perRequestMeetsTheLimitByHalves() throws {
    var pool = Self.pool(FakeGrants(limit: 10), .perRequest, bound: 100)
    let none = pool.take(64) == nil
    #expect(none)
    #expect(pool.bound == 32)
    let message = pool.takeLimitMessage()
    #expect(message != nil)
    let still = pool.take(32) == nil
    #expect(still)
    let some = pool.take(10)
    #expect(some?.count == 10)
  }

  @Test func aFaultOfTheSystemIsToldAndTheBoundKept() {
    let sharing = FakeGrants()
    sharing.with { $0.fault = XenError(.system, "gntalloc is on fire") }
    var pool = Self.pool(sharing, bound: 8)
    let none = pool.take(1) == nil
    #expect(none)
    let message = pool.takeLimitMessage()
    #expect(message?.contains("on fire") == true)
  }

  @Test(arguments: GrantMode.allCases, 0..<20)
  func atRandomNoPageIsEverGivenTwice(mode: GrantMode, seed: Int) throws {
    var random = SeededGenerator(seed: UInt64(seed))
    let sharing = FakeGrants(limit: seed % 4 == 0 ? 70 : 1000)
    let bound = 1 + random.below(200)
    var pool = Self.pool(sharing, mode, bound: bound)
    var held: [PageList] = []
    for _ in 0..<600 {
      if random.below(2) == 0, let list = pool.take(1 + random.below(20)) {
        held.append(list)
      } else if !held.isEmpty {
        pool.put(held.remove(at: random.below(held.count)))
      }
      var inUse: [Int32] = []
      for list in held { inUse += Self.pages(list, pool) }
      #expect(Set(inUse).count == inUse.count)
      for page in inUse { #expect(sharing.page(pool.reference(page)) == pool.memory(page).address) }
      #expect(pool.pagesInUse == inUse.count)
      #expect(sharing.liveCount <= bound)
      #expect(pool.sharedPages == sharing.liveCount)
    }
    for list in held { pool.put(list) }
    #expect(pool.pagesInUse == 0)
    #expect(pool.highWater <= bound)
  }

  @Test func thePoolsEndUnsharesEverything() throws {
    let sharing = FakeGrants()
    do {
      var pool = Self.pool(sharing, bound: 100)
      _ = pool.take(100)
      #expect(sharing.liveCount == 100)
    }
    #expect(sharing.liveCount == 0)
  }

  /// A backend that has yet to carry out a write would write zeroes.
  @Test(arguments: GrantMode.allCases)
  func regression_pagesOfRequestsWithoutAnAnswerAreLeftAsTheyAre(mode: GrantMode) throws {
    let sharing = FakeGrants()
    var used: [GrantRef] = []
    do {
      var pool = Self.pool(sharing, mode, bound: 64)
      let (first, second) = (pool.take(2), pool.take(3))
      let (given, kept) = (try #require(first), try #require(second))
      used = Self.pages(kept, pool).map { pool.reference($0) }
      sharing.overwrite(0xAA)
      pool.put(given)
      #expect(pool.pagesInUse == 3)
    }
    let left = sharing.with { $0.bytesAtEnd }
    #expect(left.count == (mode == .persistent ? 64 : 5))
    for (reference, byte) in left { #expect(byte == (used.contains(reference) ? 0xAA : 0)) }
  }

  @Test func regression_theLimitOfPagesForEachRequestIsTheSameNewsEachTime() {
    let sharing = FakeGrants(limit: 30)
    var pool = Self.pool(sharing, .perRequest, bound: 64)
    var said: Set<String> = []
    for count in [40, 33, 64, 50] {
      let taken = pool.take(count) == nil
      #expect(taken)
      if let message = pool.takeLimitMessage() { said.insert(message) }
      pool.tryToGrow()
    }
    #expect(said.count == 1)
  }
}
