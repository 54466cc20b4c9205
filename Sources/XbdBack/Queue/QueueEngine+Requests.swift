// SPDX-License-Identifier: Apache-2.0
//
// The checks of each kind of request. A request that fails one is answered at once and touches nothing.

internal import Blkif
internal import Glibc
internal import Platform
internal import Xen

extension QueueEngine {
  /// Begins one request.
  ///
  /// - Parameter request: the private copy; every field can be anything.
  @inline(__always)
  mutating func handle(_ request: WireRequest) {
    if parameters.faults != nil, isSpoilt(request) { return }
    switch BlockOperation(rawValue: request.operation) {
    case .read:
      statistics.reads &+= 1
      direct(request, .read)
    case .write:
      statistics.writes &+= 1
      direct(request, .write)
    case .writeBarrier:
      statistics.barriers &+= 1
      barrier(request)
    case .flush:
      statistics.flushes &+= 1
      flush(request)
    case .discard:
      statistics.discards &+= 1
      discard(request)
    case .indirect:
      indirect(request)
    case nil:
      refuse(request, parameters.configuration.unknownOperation)
    }
  }

  @inline(__always)
  private mutating func direct(_ request: WireRequest, _ operation: StorageRequest.Operation) {
    let count = request.segmentCount
    guard count > 0, count <= BlkIf.maxDirectSegments else { return refuse(request) }
    let slot = prepare(request)
    loadDirect(request, slot, count)
    transfer(slot, operation, sector: request.sector, segmentCount: count)
  }

  private mutating func flush(_ request: WireRequest) {
    let count = request.segmentCount
    guard parameters.configuration.flush == .on else {
      return cannot(request, parameters.configuration.flush, .flush)
    }
    guard count <= BlkIf.maxDirectSegments else { return refuse(request) }
    let slot = prepare(request)
    pending[slot].flushBefore = true
    if count == 0 { return dispatch(slot) }
    // Linux treats segments of a flush as a write behind it.
    loadDirect(request, slot, count)
    transfer(slot, .write, sector: request.sector, segmentCount: count)
  }

  private mutating func barrier(_ request: WireRequest) {
    let count = request.segmentCount
    guard parameters.configuration.barrier == .on else {
      return cannot(request, parameters.configuration.barrier, .barrier)
    }
    guard count <= BlkIf.maxDirectSegments else { return refuse(request) }
    let slot = prepare(request)
    pending[slot].flushBefore = true
    if count > 0 {
      loadDirect(request, slot, count)
      guard check(slot, .write, sector: request.sector, segmentCount: count), map(slot, .write) else {
        return fail(slot, .write)
      }
      pending[slot].flushAfter = true
    }
    hold(slot)
  }

  private mutating func discard(_ request: WireRequest) {
    guard parameters.discard == .on else { return cannot(request, parameters.discard, .discard) }
    let count = request.discardSectorCount
    guard let sector = firstSector(request.sector) else { return refuse(request) }
    let (end, overflow) = sector.addingReportingOverflow(count)
    guard !parameters.readOnly, !overflow, end <= sectorCount, (sector | count) & sectorMask == 0 else {
      return refuse(request)
    }
    guard count > 0 else { return answer(id: request.id, operation: request.operation, .okay) }
    let secure = parameters.secureDiscard && request.discardFlag & 1 != 0
    let slot = prepare(request)
    pending[slot].hasBody = true
    pending[slot].work = StorageRequest(
      secure ? .secureDiscard : .discard, byteOffset: sector &* UInt64(BlkIf.sectorSize),
      byteCount: count &* UInt64(BlkIf.sectorSize))
    dispatch(slot)
  }

  private mutating func indirect(_ request: WireRequest) {
    let limit = parameters.configuration.maxIndirectSegments
    guard limit > 0 else { return refuse(request, parameters.configuration.unknownOperation) }
    let inner = request.indirectOperation
    let count = request.indirectSegmentCount
    statistics.indirects &+= 1
    let operation: StorageRequest.Operation
    switch BlockOperation(rawValue: inner) {
    case .read:
      operation = .read
      statistics.reads &+= 1
    case .write:
      operation = .write
      statistics.writes &+= 1
    default:
      return refuse(request, parameters.configuration.malformedRequest, responseOperation(of: request))
    }
    let pages = BlkIf.indirectPages(forSegments: count)
    guard count > 0, count <= limit, pages <= parameters.configuration.maxIndirectPages else {
      return refuse(request, parameters.configuration.malformedRequest, responseOperation(of: request))
    }
    let sector = request.sector
    let slot = prepare(request)
    pending[slot].responseOperation = responseOperation(of: request)
    guard loadIndirect(request, slot, count) else { return fail(slot, operation) }
    transfer(slot, operation, sector: sector, segmentCount: count)
  }

  /// What an indirect request's response carries: the operation inside, as every known backend has it.
  private func responseOperation(of request: WireRequest) -> UInt8 {
    parameters.configuration.echoIndirectOperation ? request.operation : request.indirectOperation
  }

  // MARK: Faults

  /// Lets something go wrong, if its time has come.
  ///
  /// - Returns: whether that is all that happens to the request.
  private mutating func isSpoilt(_ request: WireRequest) -> Bool {
    let outer = BlockOperation(rawValue: request.operation)
    let isIndirect = outer == .indirect
    let operation = isIndirect ? BlockOperation(rawValue: request.indirectOperation) : outer
    let echo = isIndirect ? responseOperation(of: request) : request.operation
    nextFault = .none
    switch parameters.faults?.next(operation) {
    case nil: return false
    case .error: answer(id: request.id, operation: echo, .error)
    case .notSupported: answer(id: request.id, operation: echo, .notSupported)
    case .stop: isStopped = true
    case .die: kill(getpid(), SIGKILL)
    case .delay(let milliseconds):
      nextFault = .delay(milliseconds)
      return false
    case .late:
      nextFault = .late
      return false
    case .drop:
      nextFault = .drop
      return false
    }
    return true
  }

  // MARK: Steps

  /// Answers a request that makes no sense and was never begun.
  private mutating func refuse(_ request: WireRequest) {
    refuse(request, parameters.configuration.malformedRequest)
  }

  private mutating func refuse(
    _ request: WireRequest, _ refusal: BackendConfiguration.Refusal, _ operation: UInt8? = nil
  ) {
    if parameters.configuration.refusalMicroseconds > 0 {
      usleep(parameters.configuration.refusalMicroseconds)
    }
    loseRequest()
    guard let status = refusal.status else { return }
    answer(id: request.id, operation: operation ?? request.operation, status)
  }

  /// Answers a request for a feature that is not there, or turns out not to be.
  private mutating func cannot(
    _ request: WireRequest, _ support: BackendConfiguration.Support, _ feature: Withdrawal
  ) {
    guard support == .advertisedOnly else {
      return refuse(request, parameters.configuration.unknownOperation)
    }
    if parameters.configuration.withdrawsFeatures { withdrawn.insert(feature) }
    answer(id: request.id, operation: request.operation, .notSupported)
  }

  /// Answers a request that got a slot but touches nothing.
  private mutating func fail(_ slot: UInt32, _ operation: StorageRequest.Operation) {
    let configuration = parameters.configuration
    if configuration.refusalMicroseconds > 0 { usleep(configuration.refusalMicroseconds) }
    loseRequest()
    pending[slot].hasBody = false
    let isRefusedWrite = operation == .write && parameters.readOnly
    switch isRefusedWrite ? configuration.readOnlyWrite : configuration.malformedRequest {
    case .error: end(slot, .failed(EINVAL))
    case .notSupported: end(slot, .notSupported)
    case .unanswered: abandon(slot)
    }
  }

  /// NetBSD answers a request that it refuses and forgets to put it back on its free list; with the last of them gone
  /// its kernel follows a null pointer.
  private mutating func loseRequest() {
    guard parameters.configuration.requestsToLose > 0 else { return }
    statistics.lostRequests &+= 1
    if statistics.lostRequests >= UInt64(parameters.configuration.requestsToLose) { isStopped = true }
  }

  /// Takes the time that a request takes which is not made of whole pages in its middle.
  private mutating func passUneven(_ segments: SlotList<Segment>, _ count: Int) {
    let last = UInt8(BlkIf.sectorsPerPage - 1)
    for index in 0..<count {
      let begins = index == 0 || segments[index].firstSector == 0
      let ends = index == count - 1 || segments[index].lastSector == last
      if begins && ends { continue }
      statistics.unevenRequests &+= 1
      usleep(parameters.configuration.unevenMicroseconds)
      return
    }
  }

  /// A request's first sector in units of 512 bytes.
  ///
  /// - Returns: nil past what 64 bits hold.
  @inline(__always)
  private func firstSector(_ sector: UInt64) -> UInt64? {
    guard parameters.configuration.countsInSectorSize else { return sector }
    let (product, overflow) = sector.multipliedReportingOverflow(by: sectorMask &+ 1)
    return overflow ? nil : product
  }

  @inline(__always)
  private mutating func prepare(_ request: WireRequest) -> UInt32 {
    let slot = takeSlot()
    pending[slot].begin(id: request.id, operation: request.operation, fault: nextFault)
    return slot
  }

  @inline(__always)
  private func loadDirect(_ request: WireRequest, _ slot: UInt32, _ count: Int) {
    let segments = pending.segments(slot)
    for index in 0..<count { segments[index] = request.segment(index) }
  }

  @inline(__always)
  private mutating func transfer(
    _ slot: UInt32, _ operation: StorageRequest.Operation, sector: UInt64, segmentCount: Int
  ) {
    guard check(slot, operation, sector: sector, segmentCount: segmentCount), map(slot, operation) else {
      return fail(slot, operation)
    }
    dispatch(slot)
  }

  /// Checks a slot's segments and its range, and notes what the storage has to do.
  @inline(__always)
  private mutating func check(
    _ slot: UInt32, _ operation: StorageRequest.Operation, sector: UInt64, segmentCount: Int
  ) -> Bool {
    if operation == .write, parameters.readOnly { return false }
    guard let sector = firstSector(sector) else { return false }
    let segments = pending.segments(slot)
    var total: UInt64 = 0
    for index in 0..<segmentCount {
      let segment = segments[index]
      guard segment.isValid else { return false }
      total &+= UInt64(segment.sectorCount)
    }
    if parameters.configuration.unevenMicroseconds > 0 { passUneven(segments, segmentCount) }
    let (end, overflow) = sector.addingReportingOverflow(total)
    guard !overflow, end <= sectorCount, (sector | total) & sectorMask == 0 else { return false }
    pending[slot].segmentCount = segmentCount
    pending[slot].hasBody = true
    pending[slot].work.operation = operation
    pending[slot].work.byteOffset = sector &* UInt64(BlkIf.sectorSize)
    pending[slot].work.byteCount = total &* UInt64(BlkIf.sectorSize)
    return true
  }
}

extension BackendConfiguration.Refusal {
  /// What is answered; nil when nothing is.
  var status: ResponseStatus? {
    switch self {
    case .error: .error
    case .notSupported: .notSupported
    case .unanswered: nil
    }
  }
}
