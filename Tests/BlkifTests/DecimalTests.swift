// SPDX-License-Identifier: Apache-2.0
//
// Numbers as a peer may write them into xenstore.

import TestSupport
import Blkif
import Testing

@Suite struct DecimalTests {
  @Test(arguments: [
    ("0", 0), ("1", 1), ("8", 8), ("0008", 8), ("00000000000000000001", 1), ("512", 512),
    ("36028797018963968", 1 << 55), ("18446744073709551615", UInt64.max),
  ])
  func digitsAreRead(text: String, value: UInt64) throws {
    #expect(try Decimal.parse(text) == value)
    #expect(try Decimal.parse(Array(text.utf8)) == value)
  }

  @Test(arguments: [
    "", "-1", "+8", "4x", "x4", " 8", "8 ", "\t8", "8\n", "0x10", "1e3", "1.0", "1,000", "8\0", "\08", "4\05",
    "-0",
    "٣", "８", "²", "nan", "true",
    String(repeating: "1", count: 4096), String(repeating: "0", count: 21), "000000000000000000001",
  ])
  func everythingElseIsMalformed(text: String) {
    #expect(throws: NumberError.malformed) { try Decimal.parse(text) }
  }

  @Test(arguments: ["18446744073709551616", "18446744073709551620", "99999999999999999999"])
  func beyond64BitsIsOutOfRange(text: String) {
    #expect(throws: NumberError.outOfRange(nil)) { try Decimal.parse(text) }
  }

  @Test func aSizeInSectorsThatOverflowsItsBytesIsOutOfRange() throws {
    // `sectors` times 512 must fit an Int64: 2^54 sectors are 2^63 bytes.
    let sectors: ClosedRange<UInt64> = 1...UInt64(Int64.max) / 512
    #expect(throws: NumberError.outOfRange(1 << 55)) { try Decimal.parse("36028797018963968", in: sectors) }
    #expect(throws: NumberError.outOfRange(1 << 54)) { try Decimal.parse("18014398509481984", in: sectors) }
    #expect(throws: NumberError.outOfRange(UInt64.max)) {
      try Decimal.parse("18446744073709551615", in: sectors)
    }
    #expect(throws: NumberError.outOfRange(0)) { try Decimal.parse("0", in: sectors) }
    #expect(try Decimal.parse("18014398509481983", in: sectors) == 1 << 54 - 1)
  }

  @Test func bytesThatAreNotTextAreMalformed() {
    for byte in UInt8.min...UInt8.max where !(0x30...0x39).contains(byte) {
      #expect(throws: NumberError.malformed) { try Decimal.parse([byte]) }
      #expect(throws: NumberError.malformed) { try Decimal.parse([0x31, byte]) }
      #expect(throws: NumberError.malformed) { try Decimal.parse([byte, 0x31]) }
    }
  }

  @Test func everyNumberIsReadBackFromItsOwnDigits() throws {
    var random = SeededGenerator(seed: runSeed)
    for _ in 0..<5000 {
      let value = random.next() >> UInt64.random(in: 0...63, using: &random)
      #expect(try Decimal.parse(String(value)) == value)
    }
  }
}
