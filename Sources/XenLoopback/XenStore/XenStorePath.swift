// SPDX-License-Identifier: Apache-2.0
//
// Which paths are paths (docs/misc/xenstore.txt, "Path format"), and what a relative one means.

/// An absolute path, checked.
struct XenStorePath: Hashable {
  /// The whole path, beginning with "/".
  let text: String
  /// The names between the slashes; empty for the root.
  let components: [String]

  /// Checks an absolute path.
  init(absolute text: String) throws(XenStoreFailure) {
    let bytes = text.utf8
    guard bytes.first == UInt8(ascii: "/"), bytes.count <= XenStoreLimits.absolutePathBytes else {
      throw .invalid
    }
    self.text = text
    if bytes.count == 1 {
      components = []
      return
    }
    guard bytes.allSatisfy(Self.isAllowed) else { throw .invalid }
    let names = text.dropFirst().split(separator: "/", omittingEmptySubsequences: false)
    guard !names.contains(where: \.isEmpty) else { throw .invalid }
    components = names.map(String.init)
  }

  /// Checks a path of a connection, which may be relative to its domain.
  init(_ given: String, relativeTo domain: UInt16) throws(XenStoreFailure) {
    if given.utf8.first == UInt8(ascii: "/") {
      try self.init(absolute: given)
    } else {
      guard !given.isEmpty, given.utf8.count <= XenStoreLimits.relativePathBytes else { throw .invalid }
      try self.init(absolute: Self.home(domain) + "/" + given)
    }
  }

  private init(components: [String]) {
    self.components = components
    text = components.isEmpty ? "/" : "/" + components.joined(separator: "/")
  }

  /// Where relative paths of a domain begin.
  static func home(_ domain: UInt16) -> String { "/local/domain/\(domain)" }

  /// The path without its last name; nil for the root.
  var parent: XenStorePath? {
    components.isEmpty ? nil : XenStorePath(components: Array(components.dropLast()))
  }

  /// The first `count` names of the path.
  func prefix(_ count: Int) -> XenStorePath { XenStorePath(components: Array(components.prefix(count))) }

  /// Whether this is `other` or lies under it.
  func isAtOrUnder(_ other: XenStorePath) -> Bool {
    components.count >= other.components.count && components.starts(with: other.components)
  }

  // "Alphanumerics and - / _ @", as xenstored checks.
  private static func isAllowed(_ byte: UInt8) -> Bool {
    switch byte {
    case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"),
      UInt8(ascii: "0")...UInt8(ascii: "9"), UInt8(ascii: "-"), UInt8(ascii: "/"), UInt8(ascii: "_"),
      UInt8(ascii: "@"):
      true
    default: false
    }
  }
}
