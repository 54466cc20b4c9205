// SPDX-License-Identifier: Apache-2.0
//
// Virtual device numbers and the names people use for them (xen-vbd-interface(7)).
//
//   1 << 28 | disk << 8 | partition      extended, any disk up to 2^20 and partition up to 255
//   202 << 8 | disk << 4 | partition     xvd, disk and partition up to 15
//     8 << 8 | disk << 4 | partition     sd, disk and partition up to 15
//     3 << 8 | disk << 6 | partition     hd, disks 0 and 1, partition up to 63
//    22 << 8 | (disk - 2) << 6 | partition   hd, disks 2 and 3

/// The number of a virtual block device, as the `virtual-device` node holds it.
public struct VirtualDevice: Hashable, Sendable, CustomStringConvertible {
  /// The encoded number.
  public let number: UInt32

  /// A device by its encoded number.
  public init(number: UInt32) { self.number = number }

  /// A device by its decimal number or by a name such as xvdb, xvdb1, sda or hdc2.
  ///
  /// - Parameter text: nil comes back when it is neither.
  public init?(_ text: String) {
    if let value = try? Decimal.parse(text, in: 0...UInt64(UInt32.max)) {
      self.init(number: UInt32(value))
    } else if let value = Self.parse(name: Substring(text)) {
      self.init(number: value)
    } else {
      return nil
    }
  }

  /// What goes into a request's `handle`.
  public var handle: UInt16 { UInt16(truncatingIfNeeded: number) }

  /// The name, such as xvdb, or nil for a number that has none.
  public var name: String? {
    if number >> 28 == 1 {
      return Self.name("xvd", disk: number >> 8 & 0xF_FFFF, partition: number & 0xFF)
    }
    guard number < 1 << 16 else { return nil }
    switch number >> 8 {
    case 202: return Self.name("xvd", disk: number >> 4 & 15, partition: number & 15)
    case 8: return Self.name("sd", disk: number >> 4 & 15, partition: number & 15)
    case 3 where number & 0xFF < 128:
      return Self.name("hd", disk: number >> 6 & 3, partition: number & 63)
    case 22 where number & 0xFF < 128:
      return Self.name("hd", disk: (number >> 6 & 3) + 2, partition: number & 63)
    default: return nil
    }
  }

  /// The name with the number, or the number alone.
  public var description: String { name.map { "\($0) (\(number))" } ?? String(number) }

  private static func name(_ prefix: String, disk: UInt32, partition: UInt32) -> String {
    var letters: [UInt8] = []
    var rest = disk
    while true {
      letters.insert(UInt8(ascii: "a") + UInt8(rest % 26), at: 0)
      if rest < 26 { break }
      rest = rest / 26 - 1
    }
    return prefix + String(decoding: letters, as: UTF8.self) + (partition == 0 ? "" : String(partition))
  }

  private static func parse(name: Substring) -> UInt32? {
    let prefixes = ["xvd", "sd", "hd"]
    guard let prefix = prefixes.first(where: { name.hasPrefix($0) }) else { return nil }
    let rest = name.dropFirst(prefix.count).utf8
    let letters = rest.prefix { $0 >= UInt8(ascii: "a") && $0 <= UInt8(ascii: "z") }
    guard (1...5).contains(letters.count) else { return nil }
    var disk: UInt32 = 0
    for letter in letters { disk = disk * 26 + UInt32(letter - UInt8(ascii: "a")) + 1 }
    disk -= 1
    let digits = rest.dropFirst(letters.count)
    var partition: UInt32 = 0
    if !digits.isEmpty {
      guard let value = try? Decimal.parse(digits, in: 1...255), digits.first != UInt8(ascii: "0") else {
        return nil
      }
      partition = UInt32(value)
    }
    switch prefix {
    case "xvd" where disk < 16 && partition < 16: return 202 << 8 | disk << 4 | partition
    case "xvd" where disk < 1 << 20: return 1 << 28 | disk << 8 | partition
    case "sd" where disk < 16 && partition < 16: return 8 << 8 | disk << 4 | partition
    case "hd" where disk < 2 && partition < 64: return 3 << 8 | disk << 6 | partition
    case "hd" where disk < 4 && partition < 64: return 22 << 8 | (disk - 2) << 6 | partition
    default: return nil
    }
  }
}
