// SPDX-License-Identifier: Apache-2.0

import Blkif
import Testing

@Suite struct ForeignTextTests {
  @Test func everyControlCharacterIsReplacedAndNothingElse() throws {
    for value in (0...0x1F) + [0x7F] + (0x80...0x9F) + [0x2028, 0x2029, 0x202E, 0x2066, 0xFEFF] {
      let scalar = try #require(Unicode.Scalar(value as Int))
      #expect(ForeignText.printable("a\(scalar)b") == "a\u{FFFD}b")
    }
    let text = "2 open: no such file \"/dev/größe\" 日本 🙂"
    #expect(ForeignText.printable(text) == text)
  }

  @Test func linesAndEscapeSequencesAreText() {
    #expect(ForeignText.printable("\u{1B}[2Jone\r\ntwo") == "\u{FFFD}[2Jone\u{FFFD}\u{FFFD}two")
    #expect(ForeignText.printable([0x61, 0xFF, 0x9B, 0x62]) == "a\u{FFFD}\u{FFFD}b")
  }

  @Test(arguments: ["x", "\u{0}", "\u{301}", "🙂"])
  func whatIsLongIsCut(unit: String) {
    let long = String(repeating: unit, count: 4000)
    for text in [
      ForeignText.printable(long, atMost: 10), ForeignText.printable(Array(long.utf8), atMost: 10),
    ] {
      #expect(text.unicodeScalars.count == 11)
      #expect(text.unicodeScalars.last == "…")
    }
    let exact = String(repeating: unit, count: 10)
    #expect(ForeignText.printable(exact, atMost: 10).unicodeScalars.count == 10)
    #expect(ForeignText.printable(Array(exact.utf8), atMost: 10).unicodeScalars.last != "…")
  }
}
