// SPDX-License-Identifier: Apache-2.0
//
// More at once than ring, pool or operation table take: nothing is lost, nothing stands still, and no more pages are
// shared than was allowed.

import Testing
import Xen
import XbdBack
import XbdFront
import XenLoopback

@Suite struct ProfileBoundsTests {
  /// Begins reads and writes until the queue takes no more.
  ///
  /// - Returns: the tags, reads at even places.
  private static func fill(_ pair: Pair, _ size: Int) throws -> [UInt64] {
    guard let queue = pair.device?.queues.first else { return [] }
    var tags: [UInt64] = []
    while true {
      let index = tags.count
      let offset = index * size
      let tag = pair.ledger.takeTag()
      let request = BlockRequest(
        command: index % 2 == 0 ? .read : .write, byteOffset: UInt64(offset), byteCount: UInt64(size))
      guard let operation = queue.begin(request, tag: tag) else {
        pair.ledger.forget(tag)
        return tags
      }
      if index % 2 == 1 { pair.copy(operation, queue, pattern(size, UInt64(index)), nil) }
      pair.operations[tag] = (queue, operation)
      queue.submit(operation)
      queue.poll()
      tags.append(tag)
    }
  }

  @Test(arguments: Setting.all, CopyMode.allCases)
  func moreThanRingAndPoolTakeWaitsAndComesThrough(setting: Setting, copy: CopyMode) throws {
    for grants in GrantMode.allCases {
      let pair = try Pair(setting, byteCount: 8 << 20)
      var options = Pair.options
      options.poolPages = 48
      options.ringPageOrder = 0
      options.copy = copy
      options.grants = grants
      try pair.connect(options)
      pair.disk.shut()
      let tags = try Self.fill(pair, 8192)
      pair.turn { pair.disk.held >= 1 }
      let counters = pair.device?.queues[0].counters ?? QueueCounters()
      #expect(counters.waitsForPages + counters.waitsForOperations > 0, "\(counters)")
      // A page for the ring.
      let shared = try pair.toolstack.status(of: DomainID(1)).pagesShared
      #expect(shared <= 48 + 1, "\(setting)")
      pair.disk.open()
      for tag in tags { #expect(try pair.finish(tag).0 == .okay) }
      for index in stride(from: 1, to: min(tags.count, 512), by: 2) {
        #expect(try pair.read(index * 8192, 8192) == pattern(8192, UInt64(index)))
        if index > 40 { break }
      }
      let after = pair.device?.queues[0].counters ?? QueueCounters()
      #expect(after.poolHighWater <= 48 && after.poolBound == 48, "\(after)")
      #expect(try pair.toolstack.status(of: DomainID(1)).pagesShared <= 48 + 1)
      pair.close()
      try pair.expectNothingLeft()
    }
  }

  @Test(arguments: Setting.all)
  func aDomainThatMayShareFewPagesIsServedAllTheSame(setting: Setting) throws {
    let pair = try Pair(setting)
    try pair.toolstack.setPageLimit(20, of: DomainID(1))
    var options = Pair.options
    options.ringPageOrder = 0
    try pair.connect(options)
    let load = Load(pair)
    for _ in 0..<6 {
      try load.start(8)
      try load.finish()
      #expect(try pair.toolstack.status(of: DomainID(1)).pagesShared <= 20)
    }
    try load.check()
    #expect((pair.device?.queues[0].counters.poolBound ?? 99) <= 20)
    pair.close()
    try pair.expectNothingLeft()
  }

  @Test(arguments: Setting.all)
  func whatIsBegunAndGivenUpChangesNothing(setting: Setting) throws {
    let pair = try Pair(setting)
    let queue = try pair.connect().queues[0]
    #expect(try pair.perform(.write, 0, data: pattern(8192, 3)) == .okay)
    let before = pair.taken
    var begun: [OperationID] = []
    while let operation = queue.begin(
      BlockRequest(command: .write, byteOffset: 0, byteCount: 8192), tag: 0)
    {
      pair.copy(operation, queue, pattern(8192, 4), nil)
      begun.append(operation)
    }
    #expect(begun.count >= 256)
    for operation in begun { queue.cancel(operation) }
    #expect(try pair.read(0, 8192) == pattern(8192, 3))
    #expect(pair.taken == before + 1)
    #expect(queue.unfinishedOperations == 0)
  }
}
