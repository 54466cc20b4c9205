// SPDX-License-Identifier: Apache-2.0
//
// From responses back to operations. A response is copied out of the ring once, matched against what is in
// flight, and only then believed. What does not match breaks the queue: it uses the ring no more, fails everything
// in flight, and says why.

internal import Blkif
internal import Platform
internal import Xen

extension QueueCore {
  /// Takes in every response that is there.
  ///
  /// - Returns: whether there were any.
  mutating func reap() -> Bool {
    guard !isDead else { return false }
    do throws(RingViolation) {
      let count = try ring.availableResponses()
      for _ in 0..<count {
        do throws(ProtocolViolation) {
          let response = ring.takeResponse()
          let place = try inFlight.match(response)
          complete(place, response)
        } catch {
          breakDown(error)
          return true
        }
      }
      if count > 0 { time.progress() }
      return count > 0
    } catch {
      breakDown(.ring(error))
      return true
    }
  }

  /// One request has been answered.
  private mutating func complete(_ place: Int32, _ response: WireResponse) {
    let record = inFlight.records[place]
    let slot = record.operation
    counters.responses &+= 1
    if response.operation != record.wireOperation { counters.outerOperationResponses &+= 1 }
    let status = ResponseStatus(wire: response.status)
    switch status {
    case .okay:
      if record.role == .edge {
        copyEdgeOut(record)
      } else if record.role == .data, operations[slot].command == .read {
        copyOut(record)
      }
    case .error:
      operations[slot].status = .ioError
    case .notSupported:
      counters.unsupportedResponses &+= 1
      dropFeature(record)
    }
    if !record.pages.isEmpty { copyPages -= Int(record.pages.count + record.indirectPages.count) }
    pool.put(record.pages)
    pool.put(record.indirectPages)
    // Behind them, so that neighbours are used together again.
    if status == .okay, record.role == .data, operations[slot].command == .write { settle(record) }
    inFlight.put(place)
    operations[slot].outstanding -= 1
    if operations[slot].outstanding == 0, operations[slot].state == .active { advance(slot) }
  }

  /// Part of a write is written: its pages go back while the rest is under way.
  ///
  /// If it is the next from the beginning, and cannot be asked for again. A backend that answers in another order keeps
  /// them longer.
  @inline(__always)
  private mutating func settle(_ record: InFlightRecord) {
    let slot = record.operation
    // A durable write is asked for again, all of it, if the backend goes before it has flushed. One grant at a time
    // cannot be ended where they were made together.
    guard record.count < operations[slot].alignedCount, record.offset == operations[slot].settled,
      !operations[slot].pages.isEmpty, !operations[slot].forceUnitAccess, pool.mode == .persistent
    else { return }
    let count = pageCount(record.count)
    operations[slot].settled += record.count
    pool.put(pool.cut(count, from: &operations[slot].pages))
    operationPages -= count
    // Not before there are as many as the last one wanted: each try costs its caller a little.
    if callersWantPages, operationPages + pagesWanted <= share { pagesCameBack = true }
  }

  /// The backend refuses what it had offered: do without from now on, and do this request the next best way.
  private mutating func dropFeature(_ record: InFlightRecord) {
    let slot = record.operation
    switch record.role {
    case .flush:
      let refused: FlushMethod =
        record.wireOperation == BlockOperation.flush.rawValue ? .flushCache : .barrier
      if parameters.flush == refused {
        parameters.flush = refused == .flushCache && parameters.hasBarrier ? .barrier : .none
      }
      operations[slot].mustRestart = true
    case .discard:
      parameters.discard = nil
      operations[slot].status = .notSupported
    case .data, .edge:
      if record.isIndirect {
        parameters.maxSegments = min(parameters.maxSegments, BlkIf.maxDirectSegments)
        operations[slot].mustRestart = true
      } else {
        operations[slot].status = .notSupported
      }
    }
  }

  /// Everything of an operation's present step has been answered: the next step, or the end.
  mutating func advance(_ slot: Int32) {
    guard operations[slot].status == .okay else { return finish(slot) }
    if operations[slot].mustRestart {
      operations[slot].mustRestart = false
      return begin(step: operations[slot].step, slot)
    }
    switch operations[slot].step {
    case .edges:
      begin(step: .main, slot)
    case .main
    where operations[slot].forceUnitAccess && operations[slot].command != .flush
      && operations[slot].command != .read:
      begin(step: .flush, slot)
    case .main, .flush:
      finish(slot)
    }
  }

  private mutating func begin(step: OperationRecord.Step, _ slot: Int32) {
    operations[slot].step = step
    operations[slot].issued = step == .main ? operations[slot].settled : 0
    operations[slot].turnStart = operations[slot].issued
    operations[slot].cursor = operations[slot].pages.first
    enqueue(slot)
  }

  /// The backend broke the protocol: nothing it says counts any more.
  mutating func breakDown(_ violation: ProtocolViolation) {
    guard broken == nil else { return }
    broken = violation
    giveUp(.ioError)
  }

  /// Ends every operation that was submitted and is not reported, whatever is in flight for it, and the queue with
  /// them: a late answer would be taken for the answer to whoever has the operation's place by then.
  mutating func giveUp(_ status: OperationStatus) {
    guard !isGivenUp else { return }
    isGivenUp = true
    isDead = true
    if refusal == nil { refusal = status }
    pending = OperationList()
    if !parked.isEmpty { gate.setWaiting(false, queue: index) }
    parked = OperationList()
    for slot in 0..<Int32(Self.operationCapacity) {
      switch operations[slot].state {
      case .queued, .active, .parked:
        operations[slot].status = status
        keepGateShut(slot, isAtBackend: operations[slot].isAway)
        // What a guest still has at the backend goes home with it.
        if !operations[slot].isGuest { operations[slot].outstanding = 0 }
        if operations[slot].isAway { giveUpAway(slot) }
        finish(slot)
      case .free, .begun, .done:
        break
      }
    }
  }
}
