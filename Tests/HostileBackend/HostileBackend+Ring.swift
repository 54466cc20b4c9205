// SPDX-License-Identifier: Apache-2.0
//
// The hostile backend at its ring: takes requests, serves them, answers them, with the plan's faults at each step.

internal import Glibc
internal import Platform
internal import Xen

extension HostileBackend {
  /// Takes the events that came.
  func receiveEvents() {
    guard let channels, !isChannelClosed else { return }
    while let port = (try? channels.nextPending()) ?? nil {
      wasKicked = true
      observe { $0.events += 1 }
      try? channels.unmask(port)
    }
  }

  /// Asks to be notified of the next request, unless the plan forbids it.
  ///
  /// - Returns: false when there is one already.
  func arm() -> Bool {
    guard let ring, !isOrphaned else { return true }
    if has(.suppressNotifications) {
      ring[.requestEvent] = ring[.requestProducer] &+ 1 << 31
      // It sleeps, as it has just promised.
      return true
    }
    ring[.requestEvent] = ring.consumer &+ 1
    return ring.available == 0
  }

  /// Serves what is in the ring.
  ///
  /// - Returns: whether there was anything.
  func serve() -> Bool {
    guard let ring, !isChannelClosed, !isOrphaned else { return false }
    // A backend that suppresses notifications sleeps until it gets one all the same.
    if has(.suppressNotifications), !wasKicked { return false }
    wasKicked = false
    let count = ring.available
    for _ in 0..<count {
      var request = ring.take()
      taken += 1
      lookUpSegments(&request)
      observe {
        $0.taken += 1
        if keepsRequests { $0.requests.append(request) }
      }
      inspect(request)
      receive(request)
    }
    let due = MonotonicClock.nanoseconds()
    while let first = late.first, first.due <= due { answers.append(late.removeFirst().answer) }
    releaseHeld(quiet: count == 0)
    let answered = !answers.isEmpty || !repeats.isEmpty
    if answered { respond() }
    if count > 0, has(.closeChannel), !isChannelClosed, let port {
      isChannelClosed = true
      try? channels?.unbind(port)
    }
    return count > 0 || answered
  }

  private func lookUpSegments(_ request: inout HostileRequest) {
    guard request.isIndirect, let grants else { return }
    for index in 0..<min(request.indirectSegmentCount, 4096) {
      guard let page = grants.page(request.indirectReference(index / 512)) else { return }
      let entry = page + index % 512 * 8
      request.segments.append(
        HostileRequest.Part(
          reference: entry.load(as: UInt32.self), first: entry.load(fromByteOffset: 4, as: UInt8.self),
          last: entry.load(fromByteOffset: 5, as: UInt8.self)))
    }
    if has(.changeIndirectPages) {
      for index in 0..<request.indirectPageCount {
        if let page = grants.page(request.indirectReference(index)) { memset(page, 0xFF, 4096) }
      }
    }
  }

  /// Looks for bytes in granted pages that were never meant for a backend.
  private func inspect(_ request: HostileRequest) {
    guard let grants else { return }
    if grants.isPersistent, taken & 31 == 1 { grants.lookAround() }
    scan()
    var complaints: [String] = []
    if request.operation <= 1, request.segments.contains(where: { $0.first > $0.last || $0.last > 7 }) {
      complaints.append("a segment that cannot be in \(request)")
    }
    if checksTails, request.operation == 1 {
      for part in request.segments {
        guard let page = grants.page(part.reference) else { continue }
        let end = min(Int(part.last) + 1, 8) * 512
        for byte in end..<4096 where page.load(fromByteOffset: byte, as: UInt8.self) != 0 {
          complaints.append("byte \(byte) of a page of which \(end) are written")
          break
        }
      }
    }
    if request.operation > 5 { complaints.append("operation \(request.operation)") }
    if !complaints.isEmpty { observe { $0.complaints += complaints } }
  }

  /// Looks through everything that can be read.
  public func scan() {
    guard let grants, let ring else { return }
    var (count, found) = grants.scan(for: Self.canary)
    let inRing = contains(ring.base, ring.pageCount * 4096, Self.canary)
    count += ring.pageCount
    observe {
      $0.pagesScanned += count
      $0.mapped = grants.pages.count
      if inRing { $0.leaks.append("in the ring") }
      for reference in found { $0.leaks.append("in the page of grant \(reference)") }
    }
  }

  /// Decides what becomes of a request.
  private func receive(_ request: HostileRequest) {
    if let every = fault({ if case .neverAnswer(let every) = $0 { every } else { nil } }), taken % every == 0
    {
      withheld += 1
      return
    }
    var status: Int16
    if has(.failNth(taken)) {
      status = -1
    } else if let forced = fault({ if case .status(let status) = $0 { status } else { nil } }) {
      status = forced
    } else if request.isIndirect, has(.refuseIndirect) {
      status = -2
    } else if let refused = fault({ fault -> Int16? in
      if case .refuse(request.operation, let status) = fault { status } else { nil }
    }) {
      status = refused
    } else {
      status = execute(request)
    }
    if isOrphaned { return }
    let operation = request.isIndirect && has(.outerOperation) ? 6 : request.operation
    let answer = Answer(request: request, id: request.id, operation: operation, status: status)
    if let delay = fault({ if case .answerLate(let delay) = $0 { delay } else { nil } }) {
      late.append((MonotonicClock.nanoseconds() &+ UInt64(delay) * 1_000_000, answer))
    } else if fault({ if case .reverseAnswers(let batch) = $0 { batch } else { nil } }) != nil {
      held.append(request)
      heldAnswers.append(answer)
    } else {
      answers.append(answer)
    }
  }

  /// Answers that wait for each other come in reverse when there are enough, or when nothing else comes.
  private func releaseHeld(quiet: Bool) {
    guard !heldAnswers.isEmpty else { return }
    let batch = fault({ if case .reverseAnswers(let batch) = $0 { batch } else { nil } }) ?? 0
    guard quiet || heldAnswers.count >= batch else { return }
    answers += heldAnswers.reversed()
    heldAnswers = []
    held = []
  }

  /// Does what a request asks.
  private func execute(_ request: HostileRequest) -> Int16 {
    guard let grants, let base = disk.bytes.baseAddress else { return -1 }
    guard request.sector <= UInt64(disk.bytes.count / 512) else { return -1 }
    var position = Int(request.sector) * 512
    switch request.operation {
    case 0, 1:
      for part in request.segments where part.first <= part.last && part.last < 8 {
        let length = (Int(part.last) - Int(part.first) + 1) * 512
        guard let page = grants.page(part.reference), position + length <= disk.bytes.count else {
          // The domain was migrated, and xenstore has not said so yet: nobody will read the ring.
          isOrphaned = !ringReferences.allSatisfy { grants.isGranted($0) }
          if !isOrphaned { observe { $0.refusedMappings += 1 } }
          return -1
        }
        let address = page + Int(part.first) * 512
        if request.operation == 0 {
          memcpy(address, base + position, length)
          if has(.writeOutsideSegments) {
            memset(page, 0x6E, Int(part.first) * 512)
            memset(address + length, 0x6E, 4096 - Int(part.first) * 512 - length)
          }
        } else {
          if has(.changeWrites) {
            // What is stored is what was read once; the page changes under everybody's hands.
            memcpy(base + position, address, length)
            memset(page, 0x6D, 4096)
          } else {
            memcpy(base + position, address, length)
          }
        }
        position += length
      }
      return 0
    case 5:
      guard position + Int(truncatingIfNeeded: request.discardSectors) * 512 <= disk.bytes.count else {
        return -1
      }
      memset(base + position, 0, Int(request.discardSectors) * 512)
      return 0
    default: return 0
    }
  }

  // MARK: Answering

  private func respond() {
    guard let ring, let grants else { return }
    let batch = answers
    answers = []
    let padding: UInt8 = has(.rubbishPadding) ? 0xA7 : 0
    for answer in repeats {
      ring.respond(id: answer.id, operation: answer.operation, status: answer.status, padding: padding)
    }
    repeats = []
    for answer in batch {
      var id = answer.id
      if let wrong = fault({ if case .wrongID(let wrong) = $0 { wrong } else { nil } }) {
        id = spoil(id, wrong, ring)
      }
      let operation = fault { if case .operation(let operation) = $0 { operation } else { nil } }
      ring.respond(id: id, operation: operation ?? answer.operation, status: answer.status, padding: padding)
      if has(.answerTwice(sameBatch: true)) {
        ring.respond(id: id, operation: answer.operation, status: answer.status, padding: padding)
      }
      if has(.answerTwice(sameBatch: false)) { repeats.append(answer) }
      if has(.answerTheFuture) {
        ring.respond(id: id &+ 1 << 32, operation: answer.operation, status: answer.status, padding: padding)
      }
      if !grants.isPersistent, !has(.keepMappings) {
        for part in answer.request.segments { grants.release(part.reference) }
        for index in 0..<answer.request.indirectPageCount {
          grants.release(answer.request.indirectReference(index))
        }
      }
    }
    if let limit = fault({ if case .persistentLimit(let limit) = $0 { limit } else { nil } }) {
      while grants.pages.count > limit, let reference = grants.pages.keys.randomElement() {
        grants.release(reference)
      }
    }
    if has(.flipResponses), flipper == nil { flipper = try? Flipper(ring) }
    let lie: UInt32? = fault { if case .producer(let add) = $0 { add } else { nil } }
    let add = lie ?? 0
    let old = ring[.responseProducer]
    ring[.responseProducer] = ring.producer &+ add
    let wanted = ring[.responseEvent]
    if ring.producer &- wanted < ring.producer &- old || add != 0 { notify() }
    if has(.changeReadsAfterAnswer) {
      for answer in batch where answer.request.operation == 0 { rewrite.append(answer.request) }
    }
  }

  private func spoil(_ id: UInt64, _ how: Fault.WrongID, _ ring: HostileRing) -> UInt64 {
    switch how {
    case .beyondTheRing: id & ~0xFFFF_FFFF | UInt64(ring.capacity)
    case .neverUsed: id & ~0xFFFF_FFFF | UInt64(ring.capacity - 1)
    case .highBitSet: id ^ 1 << 63
    case .earlierUse: id &- 1 << 32
    case .allOnes: .max
    }
  }

  /// Sends an event.
  public func notify() {
    guard let port, !isChannelClosed, !has(.noEvents) else { return }
    try? channels?.notify(port)
    observe { $0.notified += 1 }
  }

  // MARK: Unasked

  /// What the plan does while nobody asks for anything.
  ///
  /// - Returns: whether it wants to go on at once.
  func misbehave() -> Bool {
    var again = misbehaveInStore()
    guard let ring, let grants else { return again }
    if has(.eventStorm) {
      for _ in 0..<100 { notify() }
      again = true
    }
    if has(.scribbleHeader) {
      // The response producer stays: lying about it is a fault of its own.
      for offset in [4, 12] { ring.store(UInt32(truncatingIfNeeded: nextRandom()), at: offset) }
      for offset in Swift.stride(from: 16, to: 64, by: 4) {
        ring.store(UInt32(truncatingIfNeeded: nextRandom()), at: offset)
      }
    }
    if has(.scribbleSlots), ring.consumer &- ring.producer <= ring.capacity {
      // Those in flight: not the ones that hold answers which nobody has fetched.
      var index = ring.producer
      while index != ring.consumer {
        memset(ring.slot(index), Int32(nextRandom() & 0xFF), HostileRing.stride)
        index &+= 1
      }
    }
    if has(.scribbleFreePages) {
      grants.lookAround()
      for reference in grants.seen.keys {
        if let page = grants.page(reference), page != ring.base { scribble(page, reference) }
      }
    }
    for request in rewrite {
      for part in request.segments { if let page = grants.page(part.reference) { memset(page, 0x6C, 4096) } }
    }
    rewrite = []
    return again
  }

  /// Fills a page unless it belongs to the ring, which a mapping of its own shows at another address.
  private func scribble(_ page: UnsafeMutableRawPointer, _ reference: UInt32) {
    guard !ringReferences.contains(reference) else { return }
    memset(page, 0x6B, 4096)
  }
}

/// Changes id and status of responses for as long as it lives.
final class Flipper: @unchecked Sendable {
  // SAFETY: the ring's words are atomics.
  private let isStopping: Locked<Bool>
  private let thread: DedicatedThread

  init(_ ring: HostileRing) throws {
    let stop = Locked(false)
    isStopping = stop
    let box = Box(ring)
    thread = try DedicatedThread(name: "flipper") {
      var round: UInt32 = 0
      while !stop.with({ $0 }) {
        for _ in 0..<64 {
          round &+= 1
          for index in 0..<box.ring.capacity {
            let offset = box.ring.slotOffset(index)
            // Operation and status in one word, the id's lower half in another: each flips on its own.
            box.ring.store(round & 1 == 0 ? 0 : 0x7FFF_0003, at: offset + 8)
          }
        }
      }
    }
  }

  private final class Box: @unchecked Sendable {
    let ring: HostileRing
    init(_ ring: HostileRing) { self.ring = ring }
  }

  func stop() {
    isStopping.with { $0 = true }
    thread.join()
  }
}
