// SPDX-License-Identifier: Apache-2.0

import Blkif
import Platform
import Testing

@testable import XbdFront

@Suite struct InFlightTableTests {
  static func outcome(_ table: borrowing InFlightTable, _ id: UInt64, _ operation: UInt8 = 0)
    -> ProtocolViolation?
  {
    do throws(ProtocolViolation) {
      _ = try table.match(WireResponse(id: id, operation: operation, status: 0))
      return nil
    } catch { return error }
  }

  @Test func onlyTheIDOfTheLatestUseMatches() {
    var table = InFlightTable(capacity: 4)
    let slot = table.take()
    table.records[slot].operation = 1
    let first = table.id(slot)
    #expect(Self.outcome(table, first) == nil)
    table.put(slot)
    #expect(Self.outcome(table, first) == .notInFlight(first))
    let again = table.take()
    table.records[again].operation = 1
    #expect(again == slot)
    let second = table.id(again)
    #expect(second != first)
    #expect(Self.outcome(table, first) == .notInFlight(first))
    #expect(Self.outcome(table, second) == nil)
    #expect(Self.outcome(table, second ^ 1 << 63) == .notInFlight(second ^ 1 << 63))
    #expect(Self.outcome(table, 4) == .unknownID(4))
    #expect(Self.outcome(table, .max) == .unknownID(.max))
  }

  @Test func everySlotIsGivenOutOnce() {
    var table = InFlightTable(capacity: 512)
    var ids: Set<UInt64> = []
    for round in 0..<3 {
      var slots: [Int32] = []
      for _ in 0..<512 {
        let slot = table.take()
        slots.append(slot)
        ids.insert(table.id(slot))
      }
      #expect(Set(slots).count == 512)
      #expect(table.count == 512)
      #expect(ids.count == 512 * (round + 1))
      for slot in slots.shuffled() { table.put(slot) }
      #expect(table.count == 0)
    }
  }

  @Test(arguments: 0..<8 as Range<UInt8>, [false, true])
  func theOperationMustBeTheRequestsOwn(operation: UInt8, isIndirect: Bool) {
    var table = InFlightTable(capacity: 4)
    let slot = table.take()
    table.records[slot].operation = 1
    table.records[slot].wireOperation = 1
    table.records[slot].isIndirect = isIndirect
    let accepted = operation == 1 || (isIndirect && operation == 6)
    let violation = Self.outcome(table, table.id(slot), operation)
    #expect(violation == (accepted ? nil : .wrongOperation(expected: 1, got: operation)))
  }
}
