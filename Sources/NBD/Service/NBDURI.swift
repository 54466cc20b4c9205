// SPDX-License-Identifier: Apache-2.0
//
// The address that clients take (doc/uri.md of NetworkBlockDevice/nbd): what `--run` puts into $uri.

extension ListeningSocket.Address {
  /// The NBD URI of an export at this address; nil for a socket that no URI can name.
  ///
  /// - Parameter export: its name; empty for the default export.
  public func uri(export: String) -> String? {
    switch self {
    case .unix(let path):
      return "nbd+unix:///\(encode(export, keeping: "/"))?socket=\(encode(path, keeping: "/"))"
    case .tcp(let host, let port):
      let isIPv6 = host.utf8.contains(UInt8(ascii: ":"))
      let name = isIPv6 ? "[\(encode(host, keeping: ":"))]" : encode(host, keeping: "")
      return "nbd://\(name):\(port)/\(encode(export, keeping: "/"))"
    case .other:
      return nil
    }
  }
}

/// Percent-encodes everything but unreserved characters (RFC 3986, 2.3) and those named.
private func encode(_ text: String, keeping kept: StaticString) -> String {
  let hexadecimal = Array("0123456789ABCDEF".utf8)
  let keptBytes = Array(kept.description.utf8)
  var result: [UInt8] = []
  for byte in text.utf8 {
    switch byte {
    case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"),
      UInt8(ascii: "0")...UInt8(ascii: "9"), UInt8(ascii: "-"), UInt8(ascii: "."), UInt8(ascii: "_"),
      UInt8(ascii: "~"):
      result.append(byte)
    case _ where keptBytes.contains(byte):
      result.append(byte)
    default:
      result.append(UInt8(ascii: "%"))
      result.append(hexadecimal[Int(byte >> 4)])
      result.append(hexadecimal[Int(byte & 15)])
    }
  }
  return String(decoding: result, as: UTF8.self)
}
