// SPDX-License-Identifier: Apache-2.0
//
// What the other end wrote into xenstore, on its way to a person: a terminal does what escape sequences say, and a log is
// read line by line.

/// Text of the other end's.
public enum ForeignText {
  /// Makes text fit to be shown: one line, without control characters or any that change how others are shown.
  ///
  /// - Parameters:
  ///   - text: anything, untrusted.
  ///   - limit: how many characters of it are shown.
  public static func printable(_ text: some StringProtocol, atMost limit: Int = 256) -> String {
    var result = String.UnicodeScalarView()
    var count = 0
    for scalar in text.unicodeScalars {
      guard count < limit else {
        result.append("…")
        break
      }
      result.append(isHarmless(scalar) ? scalar : "\u{FFFD}")
      count += 1
    }
    return String(result)
  }

  /// The same for bytes, of which those that are not UTF-8 are replaced as well.
  public static func printable(_ bytes: some Collection<UInt8>, atMost limit: Int = 256) -> String {
    // No character has more than four.
    printable(String(decoding: bytes.prefix(4 * limit + 4), as: UTF8.self), atMost: limit)
  }

  private static func isHarmless(_ scalar: Unicode.Scalar) -> Bool {
    switch scalar.properties.generalCategory {
    // C0, DEL and C1; what turns the direction of writing or cannot be seen; ends of lines.
    case .control, .format, .lineSeparator, .paragraphSeparator: false
    default: true
    }
  }
}
