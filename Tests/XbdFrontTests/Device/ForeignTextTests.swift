// SPDX-License-Identifier: Apache-2.0
//
// What a backend wrote into xenstore is shown to a person, whose terminal does what escape sequences say.

import Testing

@testable import XbdFront

@Suite struct ForeignTextTests {
  static let nasty = "\u{1B}]0;owned\u{7}\u{1B}[2Jfine\r\n\u{7F}\u{9B}31m\0"

  static func check(_ text: String, sourceLocation: SourceLocation = #_sourceLocation) {
    for scalar in text.unicodeScalars where scalar.properties.generalCategory == .control {
      Issue.record("U+\(String(scalar.value, radix: 16)) in a sentence", sourceLocation: sourceLocation)
    }
  }

  @Test func whatTheBackendSaysOfItsErrorIsTextAndNotLong() throws {
    let system = FakeSystem(backend: ["state": "6"])
    var options = system.options
    options.handshakeTimeout = .milliseconds(80)
    system.tree["/local/domain/0/error/backend/qdisk/7/51728/error"] =
      "2 no such file " + Self.nasty + String(repeating: "x", count: 4000)
    let error = try #require(BlockDeviceTests.failure(system, options))
    Self.check(error.message)
    #expect(error.message.contains("2 no such file"))
    #expect(error.message.contains("fine"))
    #expect(error.message.utf8.count < 1000)
  }

  @Test(arguments: ["sectors", "feature-flush-cache"])
  func aValueInASentenceIsText(key: String) throws {
    let system = FakeSystem(backend: [key: Self.nasty])
    system.answer(FakeSystem.honest)
    let error = try #require(BlockDeviceTests.failure(system))
    #expect(error.code == .malformed)
    Self.check(error.message)
    #expect(error.message.contains("fine"))
  }
}
