// SPDX-License-Identifier: Apache-2.0
//
// Random requests, several at once and none over another, against a model: an array of bytes.

import TestSupport
import Testing
import XbdBack
import XbdFront

/// What a device is given to do, and what has to come of it.
final class Load {
  private struct Running {
    let tag: UInt64
    let command: BlockRequest.Command
    let range: Range<Int>
    let isDurable: Bool
  }

  private let pair: Pair
  private var random: SeededGenerator
  private var running: [Running] = []
  private(set) var model: [UInt8]
  /// The longest requests.
  var sizes = [512, 5000, 20_000, 70_000]
  /// Flushes and durable writes may come to an end that says "not supported".
  var mayLackFlush = false
  /// How many operations have ended.
  private(set) var ended = 0

  init(_ pair: Pair, seed: UInt64 = 7) {
    self.pair = pair
    random = SeededGenerator(seed: seed)
    model = [UInt8](repeating: 0, count: Int(pair.disk.byteCount))
  }

  /// Begins requests on all queues in turn.
  ///
  /// - Parameters:
  ///   - count: how many are drawn; those that would lie over others are left out.
  ///   - limit: the end of what they touch; nil for the end of the disk.
  ///   - durably: with durable writes, which need a flush behind them.
  func start(_ count: Int, below limit: Int? = nil, durably: Bool = true) throws {
    guard let device = pair.device else { throw PairFailure(description: "not connected") }
    let end = limit ?? model.count
    let canFlush = device.queues[0].parameters.flush != .none
    for index in 0..<count {
      let queue = index % device.queues.count
      let length = 1 + random.below(sizes[random.below(sizes.count)])
      let offset = random.below(end - length)
      let isAligned = random.below(3) != 0
      let range = isAligned ? offset / 512 * 512..<(offset + length) / 512 * 512 : offset..<offset + length
      if range.isEmpty || running.contains(where: { $0.range.overlaps(range) }) { continue }
      let commands: [BlockRequest.Command] = [.read, .read, .write, .write, .writeZeroes, .discard]
      let command = commands[random.below(commands.count)]
      if command == .discard, device.queues[queue].parameters.discard == nil { continue }
      let data = command == .write ? pattern(range.count, random.next()) : []
      let isDurable = durably && canFlush && command == .write && random.below(4) == 0
      let tag = try pair.start(
        command, range.lowerBound, range.count, data: data, fua: isDurable, queue: queue)
      running.append(Running(tag: tag, command: command, range: range, isDurable: isDurable))
      if command == .write { model.replaceSubrange(range, with: data) }
      if command == .writeZeroes { model.replaceSubrange(range, with: repeatElement(0, count: range.count)) }
    }
  }

  /// Shuts the disk, and begins requests until it holds some of them back: from there on they are in flight.
  ///
  /// - Parameters:
  ///   - count: as for ``start(_:below:durably:)``.
  ///   - held: how many the disk is to hold.
  func startHeld(
    _ count: Int, atLeast held: Int = 2, durably: Bool = true, withFlush: Bool = false
  ) throws {
    pair.disk.shut()
    try start(count, durably: durably)
    if withFlush { try startFlush() }
    let isHeld = pair.turn { pair.disk.held >= held }
    #expect(isHeld, "\(pair.profile): \(pair.standing)")
  }

  /// Begins a flush.
  func startFlush() throws {
    guard pair.device?.queues[0].parameters.flush != FlushMethod.none else { return }
    running.append(
      Running(tag: try pair.start(.flush), command: .flush, range: 0..<0, isDurable: true))
  }

  /// Waits for everything that was begun, and looks at what has come of it.
  func finish() throws {
    let all = running
    running = []
    for one in all {
      let (status, bytes) = try pair.finish(
        one.tag, reading: one.command == .read ? one.range.count : 0)
      ended += 1
      let what = "\(pair.profile), \(one.command) \(one.range), durable \(one.isDurable): \(status)"
      switch one.command {
      case .read:
        let isRight = status == .okay && bytes == Array(model[one.range])
        #expect(isRight, "\(what)")
      case .discard:
        // What it leaves is zero or what was there; the model follows.
        #expect(status == .okay || status == .notSupported, "\(what)")
        model.replaceSubrange(one.range, with: try pair.read(one.range.lowerBound, one.range.count))
      default:
        #expect(status == .okay || one.isDurable && mayLackFlush && status == .notSupported, "\(what)")
      }
    }
  }

  /// Compares the whole disk with the model.
  func check() throws {
    let isSame = try pair.read(0, model.count) == model
    #expect(isSame, "\(pair.profile): the disk differs from the model")
  }

  /// How many are under way.
  var count: Int { running.count }

  /// The disk was made smaller or larger: what is new is zero.
  func resize(to byteCount: Int) {
    if byteCount < model.count { model.removeSubrange(byteCount...) }
    model += [UInt8](repeating: 0, count: byteCount - model.count)
  }
}
