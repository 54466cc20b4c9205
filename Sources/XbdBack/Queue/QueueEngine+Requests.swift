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
      answer(id: request.id, operation: request.operation, .notSupported)
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
    guard parameters.configuration.flush == .on else { return refuse(request, .notSupported) }
    guard count <= BlkIf.maxDirectSegments else { return refuse(request) }
    let slot = prepare(request)
    pending.slots[Int(slot)].flushBefore = true
    if count == 0 { return dispatch(slot) }
    // Linux treats segments of a flush as a write behind it.
    loadDirect(request, slot, count)
    transfer(slot, .write, sector: request.sector, segmentCount: count)
  }

  private mutating func barrier(_ request: WireRequest) {
    let count = request.segmentCount
    guard parameters.configuration.barrier == .on else { return refuse(request, .notSupported) }
    guard count <= BlkIf.maxDirectSegments else { return refuse(request) }
    let slot = prepare(request)
    pending.slots[Int(slot)].flushBefore = true
    if count > 0 {
      loadDirect(request, slot, count)
      guard check(slot, .write, sector: request.sector, segmentCount: count), map(slot, .write) else {
        return fail(slot)
      }
      pending.slots[Int(slot)].flushAfter = true
    }
    hold(slot)
  }

  private mutating func discard(_ request: WireRequest) {
    guard parameters.discard == .on else { return refuse(request, .notSupported) }
    let sector = request.sector
    let count = request.discardSectorCount
    let (end, overflow) = sector.addingReportingOverflow(count)
    guard !parameters.readOnly, !overflow, end <= sectorCount, (sector | count) & sectorMask == 0 else {
      return refuse(request)
    }
    guard count > 0 else { return refuse(request, .okay) }
    let secure = parameters.secureDiscard && request.discardFlag & 1 != 0
    let slot = prepare(request)
    pending.slots[Int(slot)].hasBody = true
    pending.slots[Int(slot)].work = StorageRequest(
      secure ? .secureDiscard : .discard, byteOffset: sector &* UInt64(BlkIf.sectorSize),
      byteCount: count &* UInt64(BlkIf.sectorSize))
    dispatch(slot)
  }

  private mutating func indirect(_ request: WireRequest) {
    let limit = parameters.configuration.maxIndirectSegments
    guard limit > 0 else { return refuse(request, .notSupported) }
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
      return answer(id: request.id, operation: responseOperation(of: request), .error)
    }
    guard count > 0, count <= limit else {
      return answer(id: request.id, operation: responseOperation(of: request), .error)
    }
    let sector = request.sector
    let slot = prepare(request)
    pending.slots[Int(slot)].responseOperation = responseOperation(of: request)
    guard loadIndirect(request, slot, count) else { return fail(slot) }
    transfer(slot, operation, sector: sector, segmentCount: count)
  }

  /// What an indirect request's response carries: the operation inside, as every known backend has it.
  private func responseOperation(of request: WireRequest) -> UInt8 {
    parameters.configuration.echoIndirectOperation ? request.operation : request.indirectOperation
  }

  // MARK: Steps

  /// Answers a request that was never begun.
  private mutating func refuse(_ request: WireRequest, _ status: ResponseStatus = .error) {
    answer(id: request.id, operation: request.operation, status)
  }

  /// Answers a request that got a slot but touches nothing.
  private mutating func fail(_ slot: UInt32) {
    pending.slots[Int(slot)].hasBody = false
    end(slot, .failed(EINVAL))
  }

  @inline(__always)
  private mutating func prepare(_ request: WireRequest) -> UInt32 {
    let slot = takeSlot()
    let pointer = pending.slots + Int(slot)
    pointer.pointee.id = request.id
    pointer.pointee.responseOperation = request.operation
    pointer.pointee.hasBody = false
    pointer.pointee.flushBefore = false
    pointer.pointee.flushAfter = false
    pointer.pointee.isStaged = false
    return slot
  }

  @inline(__always)
  private func loadDirect(_ request: WireRequest, _ slot: UInt32, _ count: Int) {
    let segments = pending.segments(Int(slot))
    for index in 0..<count { segments[index] = request.segment(index) }
  }

  @inline(__always)
  private mutating func transfer(
    _ slot: UInt32, _ operation: StorageRequest.Operation, sector: UInt64, segmentCount: Int
  ) {
    guard check(slot, operation, sector: sector, segmentCount: segmentCount), map(slot, operation) else {
      return fail(slot)
    }
    dispatch(slot)
  }

  /// Checks a slot's segments and its range, and notes what the storage has to do.
  @inline(__always)
  private mutating func check(
    _ slot: UInt32, _ operation: StorageRequest.Operation, sector: UInt64, segmentCount: Int
  ) -> Bool {
    if operation == .write, parameters.readOnly { return false }
    let segments = pending.segments(Int(slot))
    var total: UInt64 = 0
    for index in 0..<segmentCount {
      let segment = segments[index]
      guard segment.isValid else { return false }
      total &+= UInt64(segment.sectorCount)
    }
    let (end, overflow) = sector.addingReportingOverflow(total)
    guard !overflow, end <= sectorCount, (sector | total) & sectorMask == 0 else { return false }
    let pointer = pending.slots + Int(slot)
    pointer.pointee.segmentCount = segmentCount
    pointer.pointee.hasBody = true
    pointer.pointee.work.operation = operation
    pointer.pointee.work.byteOffset = sector &* UInt64(BlkIf.sectorSize)
    pointer.pointee.work.byteCount = total &* UInt64(BlkIf.sectorSize)
    return true
  }
}
