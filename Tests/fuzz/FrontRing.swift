// SPDX-License-Identifier: Apache-2.0
//
// A frontend's queue against a hostile backend. The input is a program of both sides' steps: the caller's (begin,
// submit, cancel, release, poll) and the backend's (answer what is in the ring, truly or not; write anything
// anywhere into ring and granted pages; notify). In half of the inputs the backend runs on the queue's thread: what it
// answers it then answers in the next poll.

import Glibc
import Platform
import Xen

@testable import Blkif
@testable import XbdFront

func frontRing(_ input: inout FuzzInput) {
  let fuzzer = FrontRingFuzzer(&input)
  var steps = 0
  while !input.isAtEnd, steps < 400 {
    steps += 1
    fuzzer.step(&input)
  }
  fuzzer.end()
}

/// Granted pages out of one arena, given out in order.
private final class Arena: GrantSharing, @unchecked Sendable {
  static let pageCount = 320
  static let firstReference: UInt32 = 8
  /// Room on each side, which nothing may write to.
  let memory: UnsafeMutableRawPointer = .allocate(
    byteCount: (pageCount + 2) * Page.size, alignment: Page.size)
  private var next = 0
  /// Whether anybody asked for more than there is.
  private(set) var hasRefused = false

  func reset() {
    next = 0
    hasRefused = false
  }
  func page(_ index: Int) -> UnsafeMutableRawPointer { memory + (1 + index) * Page.size }
  /// The page behind a reference that is shared now.
  func page(_ reference: GrantRef) -> UnsafeMutableRawPointer? {
    let index = Int(reference.rawValue) - Int(Self.firstReference)
    return index >= 0 && index < next ? page(index) : nil
  }
  var sharedCount: Int { next }

  func share(
    pages count: Int, with domain: DomainID, writable: Bool, notification: UnmapNotification?
  ) throws(XenError) -> SharedPages {
    guard next + count <= Self.pageCount else {
      hasRefused = true
      throw XenError(.limitReached, "the arena is full")
    }
    let first = next
    next += count
    page(first).initializeMemory(as: UInt8.self, repeating: 0, count: count * Page.size)
    let references = (first..<next).map { GrantRef(Self.firstReference + UInt32($0)) }
    return SharedPages(baseAddress: page(first), references: references, end: {})
  }
}

private final class Channels: EventChannels, @unchecked Sendable {
  var isPending = false
  var isMasked = false
  var fileDescriptor: Int32 { -1 }
  func bindUnbound(remote: DomainID) throws(XenError) -> EventChannelPort { EventChannelPort(1) }
  func bindInterdomain(remote: DomainID, port: EventChannelPort) throws(XenError) -> EventChannelPort { port }
  func notify(_ port: EventChannelPort) throws(XenError) {}
  func nextPending() throws(XenError) -> EventChannelPort? {
    guard isPending, !isMasked else { return nil }
    isPending = false
    isMasked = true
    return EventChannelPort(1)
  }
  func unmask(_ port: EventChannelPort) throws(XenError) { isMasked = false }
  func unbind(_ port: EventChannelPort) throws(XenError) {}
}

/// The backend on the queue's own thread.
private final class Inline: InlineBackend, @unchecked Sendable {
  unowned let fuzzer: FrontRingFuzzer
  init(_ fuzzer: FrontRingFuzzer) { self.fuzzer = fuzzer }
  var wakeDescriptor: Int32 { -1 }
  func run() -> Bool { fuzzer.serve() }
}

private final class FrontRingFuzzer {
  /// An answer, as far as it is decided before it is known what there is to answer.
  private struct Answer {
    /// Which request it is for, of those in flight.
    let choice: UInt8
    let status: Int16
    /// Whether it is for one at all when there is none.
    let isForNothing: Bool
    let lie: Lie?
  }

  private enum Lie { case id(UInt64), operation(UInt8), outerOperation, bit(UInt64), twice }

  private static let arena = Arena()
  private static let diskBytes: UInt64 = 1 << 20
  /// What the backend scribbles into pages: seeing that again is no leak.
  private static let scribble: UInt8 = 0xEE

  private let arena = FrontRingFuzzer.arena
  private let channels = Channels()
  private var ringPages: SharedPages
  private let queue: BlockQueue
  private let control: QueueControl
  private let parameters: QueueParameters
  private let layout: RingLayout
  private let capacity: UInt32
  private let trusted: Bool
  private var seen: UInt32
  private var responses: UInt32
  /// Requests that were published and not answered with their own id, as the backend saw them.
  private var published: [(id: UInt64, operation: UInt8, inner: UInt8, pages: [GrantRef])] = []
  private var begun: [OperationID] = []
  private var done: [OperationID] = []
  private var submitted: Set<UInt64> = []
  private var tags: [OperationID: UInt64] = [:]
  private var nextTag: UInt64 = 1
  /// Whether every answer so far was a true one, so that we know what is in flight.
  private var isHonest = true
  private var isSuspended = false
  private var gaveUp = false
  private var isInline = false
  /// What a backend on the queue's thread answers when it runs next.
  private var plan: [Answer] = []
  /// Whether it answers everything instead, truly and well.
  private var answersAll = false

  init(_ input: inout FuzzInput) {
    arena.reset()
    let shape = input.byte()
    let more = input.byte()
    let order = Int(shape & 1)
    let abi: ABI = ABI.allCases[Int(shape >> 1 & 3) % ABI.allCases.count]
    trusted = shape & 8 != 0
    guard let ringPages = try? arena.share(pages: 1 << order, with: .dom0, writable: true),
      let wakeup = try? EventCounter()
    else { violated("there is room for a ring") }
    self.ringPages = ringPages
    let start: UInt32 = more & 1 == 0 ? 0 : 0xFFFF_FFFA
    let ring = FrontRing(pages: ringPages.baseAddress, pageCount: 1 << order, abi: abi, startingAt: start)
    capacity = ring.capacity
    layout = RingLayout(abi)
    seen = start
    responses = start
    var options = FrontendOptions()
    options.maxSegments = shape & 16 != 0 ? 20 : 11
    options.poolPages = more & 2 != 0 ? 6 : 80
    var parameters = QueueParameters(
      backend: .dom0, handle: 0xCA10, abi: abi, maxSegments: min(options.maxSegments, options.poolPages / 3),
      sectorCount: Self.diskBytes / 512, sectorSize: more & 4 != 0 ? 4096 : 512, isReadOnly: false,
      flush: more & 8 != 0 ? .barrier : .flushCache, hasBarrier: true,
      discard: more & 16 != 0 ? DiscardLimits(granularity: 4096, alignment: 512, secure: false) : nil,
      trusted: trusted, copy: shape & 32 != 0 ? .bounce : .direct,
      grants: more & 32 != 0 ? .perRequest : .persistent, poolPages: options.poolPages)
    parameters.keepsWrites = more & 64 != 0
    self.parameters = parameters
    control = QueueControl(queue: 0) { _ in }
    let pool = GrantPool(sharing: arena, backend: .dom0, mode: parameters.grants, bound: parameters.poolPages)
    queue = BlockQueue(
      core: QueueCore(index: 0, parameters: parameters, ring: ring, pool: pool, gate: WriteGate()),
      channels: channels, port: EventChannelPort(1), ringPages: ringPages, control: control, wakeup: wakeup)
    queue.onCompletion = { [unowned self] completion in
      guard submitted.remove(completion.tag) != nil else {
        violated("each submitted operation completes once: tag \(completion.tag)")
      }
      done.append(completion.operation)
    }
    isInline = more & 128 != 0
    if isInline {
      let backend = Inline(self)
      queue.runInline(backend)
      queue.onReconnect = { [unowned queue] in queue.runInline(backend) }
    }
  }

  func step(_ input: inout FuzzInput) {
    switch input.below(14) {
    case 0, 1: begin(&input)
    case 2: poll()
    case 3, 4: plan(&input, truly: true)
    case 5: plan(&input, truly: false)
    case 6:
      isHonest = false
      setResponses(responses &+ UInt32(input.byte()) &- 16)
    case 7:
      // Anything into the ring.
      isHonest = false
      // Except over `req_prod`, from which we know what was published; the frontend never reads it.
      let offset = 4 + Int(input.half()) % (ringPages.pageCount * Page.size - 8)
      ringPages.baseAddress.storeBytes(of: input.word(), toByteOffset: offset, as: UInt32.self)
    case 8:
      channels.isPending = true
      poll()
    case 9: _ = queue.armWakeup()
    case 10:
      // Anything into a granted page, lists of segments included.
      let page = arena.page(input.below(max(arena.sharedCount, 1)))
      memset(page + input.below(16) * 256, Int32(Self.scribble), 256)
    case 11: news(&input)
    case 12: if let operation = done.popLast() { queue.release(operation) }
    default:
      if let operation = begun.popLast() {
        if input.flag() { submit(operation) } else { queue.cancel(operation) }
      }
    }
  }

  /// Whatever happened, everything ends, once; all of it well or badly as the backend says, if that is honest.
  func end() {
    for operation in begun { submit(operation) }
    begun = []
    if isHonest, !isSuspended, !gaveUp { finish() }
    control.tell { $0.failEverything = .ioError }
    for _ in 0..<4 { poll() }
    guard submitted.isEmpty else { violated("everything in flight ends: \(submitted.count) do not") }
    for operation in done { queue.release(operation) }
    guard queue.unfinishedOperations == 0 else { violated("nothing is left unfinished") }
  }

  /// With a backend that answers all that it is asked, and callers that release, nothing waits for ever.
  private func finish() {
    answersAll = true
    for _ in 0..<4096 {
      for operation in done { queue.release(operation) }
      done = []
      if !isInline { serve() }
      let ended = poll()
      guard !submitted.isEmpty else { return }
      // Only who sleeps has nothing more to do; what it sleeps for is an answer.
      guard ended || queue.hasMore || !published.isEmpty || !queue.armWakeup() else {
        // Pages that the domain refuses may come later; time brings those back, and there is none here.
        guard arena.hasRefused || !isHonest else {
          violated("an honest backend's frontend ends everything: \(submitted.count) are left")
        }
        return
      }
    }
  }

  // MARK: The caller

  private func begin(_ input: inout FuzzInput) {
    let what = input.byte()
    let commands: [BlockRequest.Command] = [.read, .write, .flush, .discard, .writeZeroes]
    let command = commands[Int(what & 7) % 5]
    // Some sizes are sectors, some are odd, a few are absurd.
    let scale: UInt64 = what & 8 != 0 ? 512 : 37
    var offset = UInt64(input.half()) * scale
    var count = UInt64(input.byte()) * scale
    if what & 0xE0 == 0xC0 {
      // Large enough to be issued in parts.
      offset &= 0x1FFF
      count &*= 8
    }
    if what & 0xF0 == 0xF0 {
      offset = input.long()
      count = input.long()
    }
    let tag = nextTag
    nextTag += 1
    guard
      let operation = queue.begin(
        BlockRequest(
          command: command, forceUnitAccess: what & 16 != 0, byteOffset: offset, byteCount: count), tag: tag)
    else { return }
    tags[operation] = tag
    if command == .write { fill(operation) }
    if what & 32 != 0 { begun.append(operation) } else { submit(operation) }
  }

  private func submit(_ operation: OperationID) {
    guard let tag = tags.removeValue(forKey: operation) else { return }
    submitted.insert(tag)
    queue.submit(operation)
  }

  private func fill(_ operation: OperationID) {
    withUnsafeTemporaryAllocation(of: iovec.self, capacity: 64) { vectors in
      var offset = 0
      while true {
        let count = queue.vectors(of: operation, from: offset, into: vectors)
        if count == 0 || offset > 1 << 16 { return }
        for index in 0..<count {
          memset(vectors[index].iov_base, 0x5A, vectors[index].iov_len)
          offset += vectors[index].iov_len
        }
      }
    }
  }

  @discardableResult
  private func poll() -> Bool {
    let ended = queue.poll()
    scan()
    return ended
  }

  private func news(_ input: inout FuzzInput) {
    switch input.below(8) {
    case 0:
      gaveUp = true
      control.tell { $0.failEverything = .shutdown }
    case 1: control.tell { $0.refusal = .shutdown }
    case 2:
      // The backend has gone; a poll or many steps later there is another.
      guard parameters.keepsWrites, !gaveUp else { return }
      control.tell { $0.suspend = true }
      isSuspended = true
      if input.flag() { poll() }
    case 3: if isSuspended, !gaveUp { link() }
    default:
      let sectors = UInt64(input.half()) & ~7
      control.tell { $0.sectorCount = sectors }
    }
  }

  /// Connects the queue to another backend, with pages that the first never saw.
  private func link() {
    guard let pages = try? arena.share(pages: ringPages.pageCount, with: .dom0, writable: true) else {
      return
    }
    // The old ring is let go of before the new one comes.
    poll()
    ringPages = pages
    let ring = FrontRing(pages: pages.baseAddress, pageCount: pages.pageCount, abi: parameters.abi)
    seen = 0
    responses = 0
    published = []
    plan = []
    isHonest = true
    isSuspended = false
    let pool = GrantPool(sharing: arena, backend: .dom0, mode: parameters.grants, bound: parameters.poolPages)
    let link = QueueLink(
      parameters: parameters, ring: ring, pool: pool, channels: channels, port: EventChannelPort(1),
      ringPages: pages)
    control.tell { $0.link = link }
    poll()
  }

  // MARK: The backend

  private func setResponses(_ value: UInt32) {
    ringPages.baseAddress.storeBytes(of: value, toByteOffset: 8, as: UInt32.self)
  }

  /// Reads an answer, as it should be or anything, and gives it: at once, or when the backend runs.
  private func plan(_ input: inout FuzzInput, truly: Bool) {
    let choice = input.byte()
    let isForNothing = input.isAtEnd
    let status = [0, 0, 0, -1, -2, 7][input.below(6)] as Int16
    var lie: Lie?
    if !truly {
      switch input.below(5) {
      case 0: lie = .id(input.long())
      case 1: lie = .operation(input.byte())
      case 2: lie = .outerOperation
      case 3: lie = .bit(1 << UInt64(input.below(64)))
      default: lie = .twice
      }
    }
    let answer = Answer(choice: choice, status: status, isForNothing: isForNothing, lie: lie)
    if isInline { plan.append(answer) } else { give(answer) }
  }

  /// Runs the backend: one answer that was planned, or all that there are to give.
  ///
  /// - Returns: whether it did anything.
  @discardableResult
  func serve() -> Bool {
    scan()
    if answersAll {
      guard !published.isEmpty else { return false }
      while !published.isEmpty { give(Answer(choice: 0, status: 0, isForNothing: false, lie: nil)) }
      return true
    }
    guard !plan.isEmpty else { return false }
    give(plan.removeFirst())
    return true
  }

  private func give(_ answer: Answer) {
    var id = answer.isForNothing ? 0 : UInt64(answer.choice)
    var operation = answer.choice
    if published.isEmpty {
      // There is nothing that this could be true of.
      isHonest = false
    } else {
      let index = Int(answer.choice) % published.count
      let request = published[index]
      id = request.id
      operation = request.inner
      if let lie = answer.lie {
        isHonest = false
        switch lie {
        case .id(let other): id = other
        case .operation(let other): operation = other
        case .outerOperation: operation = request.operation
        case .bit(let bit): id ^= bit
        case .twice: break
        }
      } else {
        published.remove(at: index)
      }
    }
    let address =
      ringPages.baseAddress + RingLayout.headerSize + Int(responses & (capacity - 1)) * layout.stride
    address.storeBytes(of: UInt32(truncatingIfNeeded: id), as: UInt32.self)
    address.storeBytes(of: UInt32(truncatingIfNeeded: id >> 32), toByteOffset: 4, as: UInt32.self)
    address.storeBytes(of: UInt16(operation) | 0xEE00, toByteOffset: 8, as: UInt16.self)
    address.storeBytes(of: answer.status, toByteOffset: 10, as: Int16.self)
    responses &+= 1
    setResponses(responses)
  }

  /// Looks at every request that has become visible, as the backend would, before anything is overwritten.
  private func scan() {
    let producer = ringPages.baseAddress.load(as: UInt32.self)
    // The backend may have written there itself; the frontend never goes past what it has.
    guard producer &- seen <= capacity else { return }
    while seen != producer {
      let slot =
        ringPages.baseAddress + RingLayout.headerSize + Int(seen & (capacity - 1)) * layout.stride
      seen &+= 1
      inspect(slot)
    }
  }

  private func inspect(_ slot: UnsafeMutableRawPointer) {
    let operation = slot.load(as: UInt8.self)
    let id = slot.loadUnaligned(fromByteOffset: layout.id, as: UInt64.self)
    var pages: [GrantRef] = []
    var used = 0
    var inner = operation
    switch BlockOperation(rawValue: operation) {
    case .read, .write, .writeBarrier, .flush:
      let count = Int(slot.load(fromByteOffset: 1, as: UInt8.self))
      guard count <= BlkIf.maxDirectSegments else { violated("a direct request has few segments: \(count)") }
      for index in 0..<count {
        let segment = Segment(loading: slot + layout.segments + index * Segment.wireSize)
        check(segment, isWrite: operation == 1)
        pages.append(segment.reference)
      }
      used = layout.segments + count * Segment.wireSize
    case .indirect:
      let count = Int(slot.loadUnaligned(fromByteOffset: 2, as: UInt16.self))
      inner = slot.load(fromByteOffset: 1, as: UInt8.self)
      let lists = BlkIf.indirectPages(forSegments: count)
      guard count > 0, lists <= BlkIf.maxIndirectPages else { violated("an indirect request has segments") }
      for index in 0..<lists {
        let reference = GrantRef(
          slot.loadUnaligned(fromByteOffset: layout.indirectReferences + index * 4, as: UInt32.self))
        guard let list = arena.page(reference) else {
          violated("a list of segments is granted: \(reference)")
        }
        pages.append(reference)
        // A backend that lied may have ended this request in the poll that published it, with an id that it guessed or an
        // index ahead of ours: then the list's page may be somebody else's by now.
        guard isHonest else { continue }
        for entry in 0..<min(count - index * 512, 512) {
          let segment = Segment(loading: list + entry * Segment.wireSize)
          check(segment, isWrite: inner == 1)
          pages.append(segment.reference)
        }
      }
      used = layout.indirectReferences + lists * 4
    case .discard:
      used = layout.discardSectorCount + 8
    case nil:
      // Only what the backend wrote itself over the slot gets here: nothing does between publish and scan.
      violated("a request has an operation: \(operation)")
    }
    for offset in used..<layout.stride where slot.load(fromByteOffset: offset, as: UInt8.self) != 0 {
      violated("what a request does not use of its slot is zero: byte \(offset) of operation \(operation)")
    }
    guard !published.contains(where: { $0.id == id }) else { violated("ids in flight differ: \(id)") }
    if Set(pages).count != pages.count { violated("a request's pages differ") }
    let inUse = published.contains { other in other.pages.contains { pages.contains($0) } }
    if inUse, isHonest { violated("requests in flight share no page") }
    published.append((id, operation, inner, pages))
  }

  private func check(_ segment: Segment, isWrite: Bool) {
    guard segment.isValid, let page = arena.page(segment.reference) else {
      violated("a segment is part of a granted page: \(segment)")
    }
    guard isWrite, !trusted else { return }
    // What lies behind a write in its page was another request's (XSA-403).
    let end = (Int(segment.lastSector) + 1) * BlkIf.sectorSize
    for offset in end..<Page.size {
      let byte = page.load(fromByteOffset: offset, as: UInt8.self)
      if byte != 0, byte != Self.scribble {
        violated("an untrusted backend sees nothing behind a write: \(offset)")
      }
    }
  }
}
