// SPDX-License-Identifier: Apache-2.0
//
// A BlockTarget on memory, as a frontend over a ring would be one: payloads live in 4 KiB pages out of a bounded
// pool, and are copied from and to the "disk" when the operation runs. Tests make it late, reordering, failing,
// poor in pages or read-only.

public import CXen
internal import Glibc
public import NBD
internal import Platform
internal import Synchronization

/// The bytes of a disk and what tests want to know and to change; shared by targets and by the test's thread.
public final class MemoryDisk: @unchecked Sendable {
  /// The disk's bytes.
  ///
  /// Tests look at ranges that no request touches at that moment.
  public let bytes: UnsafeMutableRawBufferPointer
  /// Targets complete nothing while this is set.
  private let holding = Atomic(false)
  private let failing = Atomic<Int>(-1)
  private let wakeups = Mutex<[Int32]>([])
  let flushes = Atomic<Int>(0)
  let durable = Atomic<Int>(0)
  let outstanding = Atomic<Int>(0)
  let submitted = Atomic<Int>(0)
  let cancelled = Atomic<Int>(0)
  private let pace = Atomic<UInt64>(0)
  private let tellings = Atomic<Int>(0)
  private let poor = Atomic(false)
  private let empty = Atomic(false)
  private let gathering = Atomic<Int>(0)

  /// Flushes completed.
  public var flushCount: Int { flushes.load(ordering: .sequentiallyConsistent) }
  /// Writes, trims and zeroes that asked for durability.
  public var durableCount: Int { durable.load(ordering: .sequentiallyConsistent) }
  /// Operations begun and not given back, over all targets.
  public var outstandingCount: Int { outstanding.load(ordering: .sequentiallyConsistent) }
  /// Operations that reached the target in all.
  public var submittedCount: Int { submitted.load(ordering: .sequentiallyConsistent) }
  /// Operations cancelled.
  public var cancelledCount: Int { cancelled.load(ordering: .sequentiallyConsistent) }

  /// A writable disk that can do everything.
  public var geometry: TargetGeometry {
    TargetGeometry(
      byteCount: UInt64(bytes.count), sectorSize: 512, preferredSize: 4096, isReadOnly: false, canFlush: true,
      canTrim: true, canFastZero: true)
  }

  /// A disk of zeroes.
  public init(byteCount: Int) {
    let memory = mmap(
      nil, max(byteCount, 1), PROT_READ | PROT_WRITE,
      MAP_PRIVATE | Int32(MAP_ANONYMOUS) | Int32(MAP_NORESERVE), -1, 0)
    precondition(memory != MAP_FAILED, "no memory for a disk")
    bytes = UnsafeMutableRawBufferPointer(start: memory, count: byteCount)
  }

  deinit {
    munmap(bytes.baseAddress, max(bytes.count, 1))
  }

  /// Completes nothing from now on.
  public func hold() { holding.store(true, ordering: .sequentiallyConsistent) }

  /// Completes again.
  public func letGo() {
    holding.store(false, ordering: .sequentiallyConsistent)
    wakeups.withLock { descriptors in
      for descriptor in descriptors {
        var one: UInt64 = 1
        _ = write(descriptor, &one, 8)
      }
    }
  }

  /// Targets want to know the time this often from now on, in nanoseconds.
  ///
  /// Wakes nobody: before the first sleep.
  public func wantTime(every nanoseconds: UInt64) {
    pace.store(nanoseconds, ordering: .sequentiallyConsistent)
  }
  /// How often they were told.
  public var timesTold: Int { tellings.load(ordering: .sequentiallyConsistent) }

  func keepTime(_ now: UInt64) -> UInt64? {
    tellings.wrappingAdd(1, ordering: .relaxed)
    let pace = pace.load(ordering: .relaxed)
    return pace == 0 ? nil : now &+ pace
  }

  /// Targets can neither flush nor trim from now on, whatever was said before.
  ///
  /// Wakes nobody: between two requests.
  public func losesFeatures() { poor.store(true, ordering: .sequentiallyConsistent) }
  var isPoor: Bool { poor.load(ordering: .relaxed) }

  /// Targets say that they have more to do, and do nothing, until they have so many operations at once.
  public func gather(_ operations: Int) { gathering.store(operations, ordering: .sequentiallyConsistent) }
  var gathered: Int { gathering.load(ordering: .relaxed) }

  /// Operations have no memory to show from now on, as when what they had could not be saved.
  public func losePayloads() { empty.store(true, ordering: .sequentiallyConsistent) }
  var hasLostPayloads: Bool { empty.load(ordering: .relaxed) }

  /// Lets every operation end like this; nil for success.
  public func fail(with status: TargetStatus?) {
    failing.store(status.map { Int($0.rawValue) } ?? -1, ordering: .sequentiallyConsistent)
  }

  var isHolding: Bool { holding.load(ordering: .sequentiallyConsistent) }
  var failure: TargetStatus? {
    let raw = failing.load(ordering: .relaxed)
    return raw < 0 ? nil : TargetStatus(rawValue: UInt8(raw))
  }
  func wake(through descriptor: Int32) { wakeups.withLock { $0.append(descriptor) } }
}

/// A target on a `MemoryDisk`.
public final class MemoryTarget: BlockTarget {
  /// In what order operations complete.
  public enum Order: Sendable {
    /// As they came.
    case inOrder
    /// The last first.
    case reversed
  }

  private struct Operation {
    var tag: UInt64 = 0
    var request = TargetRequest(command: .flush, byteOffset: 0, byteCount: 0)
    var pageCount = 0
    var isFree = true
    var isRunning = false
  }

  /// The disk's, or what the test wants it to be.
  public var geometry: TargetGeometry {
    var geometry = facts
    if disk.isPoor { (geometry.canFlush, geometry.canTrim) = (false, false) }
    return geometry
  }
  private let facts: TargetGeometry
  /// See `BlockTarget`.
  public var onCompletion: (UInt64, TargetOperation, TargetStatus) -> Void = { _, _, _ in }
  private let disk: MemoryDisk
  private let order: Order
  private let counter: EventCounter
  private let operations: UnsafeMutablePointer<Operation>
  private let operationCount: Int
  private let pagesPerOperation = Int(32 << 20) / 4096 + 1
  private let operationPages: UnsafeMutablePointer<UnsafeMutableRawPointer?>
  private let freeOperations: UnsafeMutablePointer<Int>
  private var freeOperationCount: Int
  private let pool: UnsafeMutableRawPointer
  private let freePages: UnsafeMutablePointer<UnsafeMutableRawPointer?>
  private var freePageCount: Int
  private let queue: UnsafeMutablePointer<Int>
  private var queued = 0

  /// A target.
  ///
  /// - Parameters:
  ///   - disk: where the bytes are.
  ///   - pageCount: 4 KiB pages that payloads have to share; begin returns nil when they are all in use.
  ///   - operationCount: operations at a time.
  ///   - order: of completion.
  ///   - geometry: the disk's own unless given.
  public init(
    disk: MemoryDisk, pageCount: Int = 16_384, operationCount: Int = 1024, order: Order = .inOrder,
    geometry: TargetGeometry? = nil
  ) throws {
    self.disk = disk
    self.order = order
    self.operationCount = operationCount
    counter = try EventCounter()
    facts = geometry ?? disk.geometry
    operations = .allocate(capacity: operationCount)
    operations.initialize(repeating: Operation(), count: operationCount)
    operationPages = .allocate(capacity: operationCount * pagesPerOperation)
    freeOperations = .allocate(capacity: operationCount)
    for index in 0..<operationCount { (freeOperations + index).initialize(to: operationCount - 1 - index) }
    freeOperationCount = operationCount
    pool = .allocate(byteCount: pageCount * 4096, alignment: 4096)
    freePages = .allocate(capacity: pageCount)
    for index in 0..<pageCount {
      (freePages + index).initialize(to: pool + (pageCount - 1 - index) * 4096)
    }
    freePageCount = pageCount
    queue = .allocate(capacity: operationCount)
    queue.initialize(repeating: 0, count: operationCount)
    disk.wake(through: counter.fileDescriptor)
  }

  deinit {
    operations.deallocate()
    operationPages.deallocate()
    freeOperations.deallocate()
    pool.deallocate()
    freePages.deallocate()
    queue.deallocate()
  }

  /// Readable after `MemoryDisk.letGo`.
  public var descriptors: [Int32] { [counter.fileDescriptor] }

  /// Takes pages out of the pool.
  public func begin(_ request: TargetRequest, tag: UInt64) -> TargetOperation? {
    let carriesData = request.command == .read || request.command == .write
    let pages = carriesData ? (Int(request.byteCount) + 4095) / 4096 : 0
    guard freeOperationCount > 0, pages <= freePageCount else { return nil }
    freeOperationCount -= 1
    let index = freeOperations[freeOperationCount]
    operations[index] = Operation(tag: tag, request: request, pageCount: pages, isFree: false)
    let list = operationPages + index * pagesPerOperation
    for page in 0..<pages {
      freePageCount -= 1
      list[page] = freePages[freePageCount]
    }
    disk.outstanding.add(1, ordering: .relaxed)
    return TargetOperation(rawValue: UInt64(index))
  }

  /// Lists the operation's pages.
  public func vectors(
    of operation: TargetOperation, from byteOffset: Int, into vectors: UnsafeMutableBufferPointer<iovec>
  ) -> Int {
    if disk.hasLostPayloads { return 0 }
    let index = Int(operation.rawValue)
    let total = Int(operations[index].request.byteCount)
    let list = operationPages + index * pagesPerOperation
    var offset = byteOffset
    var count = 0
    while offset < total && count < vectors.count {
      let within = offset & 4095
      let length = min(4096 - within, total - offset)
      vectors[count] = iovec(iov_base: list[offset >> 12].map { $0 + within }, iov_len: length)
      offset += length
      count += 1
    }
    return count
  }

  /// Queues the operation for the next poll.
  public func submit(_ operation: TargetOperation) {
    disk.submitted.add(1, ordering: .relaxed)
    operations[Int(operation.rawValue)].isRunning = true
    queue[queued] = Int(operation.rawValue)
    queued += 1
  }

  /// Gives the pages back; traps if the operation was submitted.
  public func cancel(_ operation: TargetOperation) {
    precondition(!operations[Int(operation.rawValue)].isRunning, "cancelled after it was submitted")
    disk.cancelled.add(1, ordering: .relaxed)
    giveBack(Int(operation.rawValue))
  }

  /// Gives the pages back; traps unless the operation has completed.
  public func release(_ operation: TargetOperation) {
    precondition(!operations[Int(operation.rawValue)].isRunning, "released before it completed")
    giveBack(Int(operation.rawValue))
  }

  private func giveBack(_ index: Int) {
    precondition(!operations[index].isFree, "given back twice")
    operations[index].isFree = true
    let list = operationPages + index * pagesPerOperation
    for page in 0..<operations[index].pageCount {
      freePages[freePageCount] = list[page]
      freePageCount += 1
    }
    freeOperations[freeOperationCount] = index
    freeOperationCount += 1
    disk.outstanding.subtract(1, ordering: .relaxed)
  }

  /// Performs everything submitted, unless the disk is held.
  public func poll() -> Bool {
    guard queued > 0, !disk.isHolding, !hasMore else { return false }
    let count = queued
    queued = 0
    for position in 0..<count {
      perform(queue[order == .inOrder ? position : count - 1 - position])
    }
    return true
  }

  /// True when there is nothing that `poll` could do.
  public func armWakeup() -> Bool {
    counter.drain()
    return queued == 0 || disk.isHolding
  }

  /// See `MemoryDisk.gather`.
  public var hasMore: Bool { queued > 0 && queued < disk.gathered }

  /// See `BlockTarget`.
  public func keepTime(_ now: UInt64) -> UInt64? { disk.keepTime(now) }

  private func perform(_ index: Int) {
    let request = operations[index].request
    operations[index].isRunning = false
    let operation = TargetOperation(rawValue: UInt64(index))
    if let failure = disk.failure {
      onCompletion(operations[index].tag, operation, failure)
      return
    }
    if request.forceUnitAccess { disk.durable.add(1, ordering: .relaxed) }
    guard let base = disk.bytes.baseAddress else { return }
    let start = base + Int(request.byteOffset)
    let list = operationPages + index * pagesPerOperation
    switch request.command {
    case .read, .write:
      var done = 0
      for page in 0..<operations[index].pageCount {
        guard let memory = list[page] else { return }
        let length = min(4096, Int(request.byteCount) - done)
        if request.command == .read {
          memcpy(memory, start + done, length)
        } else {
          memcpy(start + done, memory, length)
        }
        done += length
      }
    case .flush: disk.flushes.add(1, ordering: .relaxed)
    case .trim, .writeZeroes: memset(start, 0, Int(request.byteCount))
    }
    onCompletion(operations[index].tag, operation, .okay)
  }
}
