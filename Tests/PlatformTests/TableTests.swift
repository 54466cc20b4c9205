// SPDX-License-Identifier: Apache-2.0

import Platform
import Testing

@Suite struct TableTests {
  @Test func elementsAreMadeInOrderAndChangedWhereTheyStand() {
    var table = Table(count: 5) { Place(number: $0) }
    for index in 0..<table.count { table[index].uses += index }
    table[Int32(4)].number = 40
    table[Int32(4)].uses &-= 1
    var seen: [Place] = []
    for index in 0..<Int32(table.count) { seen.append(table[index]) }
    #expect(seen.map(\.number) == [0, 1, 2, 3, 40])
    #expect(seen.map(\.uses) == [0, 1, 2, 3, 3])
  }

  @Test func equalElementsAreCopiesOfOne() {
    var table = Table(repeating: Place(number: 7), count: 3)
    table[1].number = 8
    let numbers = [table[0].number, table[1].number, table[2].number]
    #expect(numbers == [7, 8, 7])
  }

  @Test func aTableMayBeEmpty() {
    let count = Table(repeating: 1, count: 0).count
    #expect(count == 0)
  }

  @Test func whatElementsReferToEndsWithTheTable() {
    weak var kept: Object?
    do {
      var table = Table<Object?>(repeating: nil, count: 2)
      let object = Object()
      kept = object
      table[0] = object
      table[1] = object
      table[0] = nil
      #expect(kept != nil)
    }
    #expect(kept == nil)
  }

  @Test func elementsThatCannotBeCopiedAreLent() {
    let ends = Object()
    do {
      var table = Table(count: 3) { Single(number: $0, ends: ends) }
      table[2].number += 10
      table[0] = Single(number: 5, ends: ends)
      #expect(ends.count == 1)
      let sum = table[0].number + table[1].number + table[2].number
      #expect(sum == 5 + 1 + 12)
    }
    #expect(ends.count == 4)
  }

  @Test(arguments: [3, -1, Int.max, Int.min])
  func aNumberOutOfBoundsEndsTheProcess(index: Int) async {
    await #expect(processExitsWith: .failure) { [index] in
      let table = Table(repeating: 1, count: 3)
      print(table[index])
    }
  }

  @Test func theEndOfAListIsOutOfBounds() async {
    await #expect(processExitsWith: .failure) {
      var table = Table(repeating: 1, count: 3)
      table[Int32(-1)] = 2
    }
  }
}

private struct Place {
  var number: Int
  var uses = 0
}

private final class Object {
  var count = 0
}

private struct Single: ~Copyable {
  var number: Int
  let ends: Object
  deinit { ends.count += 1 }
}
