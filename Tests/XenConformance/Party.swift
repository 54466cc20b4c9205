// SPDX-License-Identifier: Apache-2.0
//
// One side of a conformance check: somebody who does with a XenSystem what he is told, in this process or another.
// Orders and answers are words, so that one set of checks runs against both.

public import Xen

/// Somebody who carries out orders on the Xen of one domain.
public protocol ConformanceParty: AnyObject {
  /// The domain it acts for.
  var domain: DomainID { get }
  /// Carries an order out.
  ///
  /// - Parameter words: the order and its arguments; bytes are in hexadecimal.
  /// - Returns: what came of it.
  func perform(_ words: [String]) throws(XenError) -> [String]
}

extension ConformanceParty {
  /// Carries out an order and gives its first word of answer as a number.
  func number(_ words: String...) throws(XenError) -> Int {
    guard let text = try perform(words).first, let number = Int(text) else {
      throw XenError(.invalid, "no number in the answer to \(words)")
    }
    return number
  }

  /// Carries out an order without looking at the answer.
  func order(_ words: String...) throws(XenError) { _ = try perform(words) }

  // MARK: grants

  func share(
    _ count: Int, with domain: DomainID, writable: Bool = true, clear: Int? = nil, notify: Int? = nil
  ) throws(XenError) -> (id: Int, references: [GrantRef]) {
    let words = try perform([
      "share", "\(count)", "\(domain)", writable ? "w" : "r", clear.map { "\($0)" } ?? "-",
      notify.map { "\($0)" } ?? "-",
    ])
    return (Int(words[0]) ?? -1, words.dropFirst().compactMap { UInt32($0).map { GrantRef($0) } })
  }
  func unshare(_ id: Int) throws(XenError) { try order("unshare", "\(id)") }
  func map(_ references: [GrantRef], of domain: DomainID, writable: Bool = true) throws(XenError) -> Int {
    let words = try perform(["map", "\(domain)", writable ? "w" : "r"] + references.map { "\($0)" })
    return Int(words[0]) ?? -1
  }
  func map(_ reference: GrantRef, of domain: DomainID, clear: Int?, notify: Int?) throws(XenError) -> Int {
    try number(
      "map-notify", "\(domain)", "w", "\(reference)", clear.map { "\($0)" } ?? "-",
      notify.map { "\($0)" } ?? "-")
  }
  func unmap(_ id: Int) throws(XenError) { try order("unmap", "\(id)") }
  func poke(_ id: Int, _ offset: Int, _ bytes: [UInt8]) throws(XenError) {
    try order("poke", "\(id)", "\(offset)", hexadecimal(bytes))
  }
  func peek(_ id: Int, _ offset: Int, _ count: Int) throws(XenError) -> [UInt8] {
    bytes(try perform(["peek", "\(id)", "\(offset)", "\(count)"])[0])
  }
  /// Copies from a granted page; nil bytes when the segment was refused.
  func copy(
    from reference: GrantRef, of domain: DomainID, _ offset: Int, _ count: Int
  ) throws(XenError) -> (status: Int, bytes: [UInt8]) {
    let words = try perform(["copy-from", "\(domain)", "\(reference)", "\(offset)", "\(count)"])
    return (Int(words[0]) ?? .min, bytes(words[1]))
  }
  /// Copies to granted pages, one segment for each reference, in one call.
  func copy(_ data: [UInt8], to references: [GrantRef], of domain: DomainID, _ offset: Int) throws(XenError)
    -> [Int]
  {
    try perform(["copy-to", "\(domain)", "\(offset)", hexadecimal(data)] + references.map { "\($0)" })
      .compactMap { Int($0) }
  }

  // MARK: event channels

  func openEvents() throws(XenError) -> Int { try number("events") }
  func close(_ id: Int) throws(XenError) { try order("close", "\(id)") }
  func bindUnbound(_ id: Int, _ remote: DomainID) throws(XenError) -> Int {
    try number("unbound", "\(id)", "\(remote)")
  }
  func bind(_ id: Int, _ remote: DomainID, _ port: Int) throws(XenError) -> Int {
    try number("bind", "\(id)", "\(remote)", "\(port)")
  }
  func notify(_ id: Int, _ port: Int) throws(XenError) { try order("notify", "\(id)", "\(port)") }
  func unmask(_ id: Int, _ port: Int) throws(XenError) { try order("unmask", "\(id)", "\(port)") }
  func unbind(_ id: Int, _ port: Int) throws(XenError) { try order("unbind", "\(id)", "\(port)") }
  /// The next pending port, waiting for one up to a time; nil when there is none.
  func pending(_ id: Int, milliseconds: Int = 0) throws(XenError) -> Int? {
    Int(try perform(["pending", "\(id)", "\(milliseconds)"])[0])
  }
  func isReadable(_ id: Int, milliseconds: Int = 0) throws(XenError) -> Bool {
    try number("readable", "\(id)", "\(milliseconds)") == 1
  }

  // MARK: xenstore

  func openStore() throws(XenError) -> Int { try number("store") }
  func read(_ id: Int, _ path: String) throws(XenError) -> String? {
    let word = try perform(["read", "\(id)", path])[0]
    return word == "-" ? nil : String(decoding: bytes(word), as: UTF8.self)
  }
  func write(_ id: Int, _ path: String, _ value: String) throws(XenError) {
    try order("write", "\(id)", path, hexadecimal(Array(value.utf8)))
  }
  func list(_ id: Int, _ path: String) throws(XenError) -> [String]? {
    let words = try perform(["list", "\(id)", path])
    return words.first == "-" ? nil : Array(words.dropFirst())
  }
  func remove(_ id: Int, _ path: String) throws(XenError) { try order("remove", "\(id)", path) }
  func watch(_ id: Int, _ path: String, _ token: String) throws(XenError) {
    try order("watch", "\(id)", path, token)
  }
  func unwatch(_ id: Int, _ path: String, _ token: String) throws(XenError) {
    try order("unwatch", "\(id)", path, token)
  }
  func event(_ id: Int, milliseconds: Int = 20_000) throws(XenError) -> (path: String, token: String)? {
    let words = try perform(["event", "\(id)", "\(milliseconds)"])
    return words.count == 2 ? (words[0], words[1]) : nil
  }
}

func hexadecimal(_ bytes: [UInt8]) -> String {
  bytes.isEmpty ? "." : bytes.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined()
}

func bytes(_ text: String) -> [UInt8] {
  guard text != "." else { return [] }
  func digit(_ byte: UInt8) -> UInt8 { byte >= 97 ? byte - 87 : byte &- 48 }
  let digits = Array(text.utf8)
  return (0..<digits.count / 2).map { digit(digits[2 * $0]) << 4 | digit(digits[2 * $0 + 1]) }
}
