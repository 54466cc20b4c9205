// SPDX-License-Identifier: Apache-2.0
//
// How a disk is named on a command line: a path, `memory:1G` or `null:1T`.

/// What a disk is to be kept in, as a person wrote it.
public enum StorageSpecification: Equatable, Sendable {
  /// A file or block device.
  case file(path: String)
  /// Memory of this process.
  case memory(byteCount: UInt64)
  /// Nothing: reads give zeroes, writes vanish.
  case null(byteCount: UInt64)

  /// Reads `memory:SIZE`, `null:SIZE` or a path; a path that begins like one of the two is written `./memory:1G`.
  public init(parsing text: String) throws(StorageError) {
    if text.hasPrefix("memory:") {
      self = .memory(byteCount: try ByteSize.parse(text.dropFirst("memory:".count)))
    } else if text.hasPrefix("null:") {
      self = .null(byteCount: try ByteSize.parse(text.dropFirst("null:".count)))
    } else if text.isEmpty {
      throw StorageError(.malformed, "the disk has no name; give a path, memory:SIZE or null:SIZE")
    } else {
      self = .file(path: text)
    }
  }

  /// Opens what is named, or makes it.
  ///
  /// - Parameter options: how.
  public func open(_ options: StorageOptions = StorageOptions()) throws(StorageError) -> any Storage {
    switch self {
    case .file(let path):
      return try FileStorage(path: path, options: options)
    case .memory(let byteCount):
      try StorageOptions.check(byteCount, multipleOf: options.sectorSize, what: "a memory disk")
      return try MemoryStorage(byteCount: byteCount, readOnly: options.readOnly)
    case .null(let byteCount):
      try StorageOptions.check(byteCount, multipleOf: options.sectorSize, what: "a null disk")
      return NullStorage(byteCount: byteCount, readOnly: options.readOnly)
    }
  }
}

/// How a storage is opened.
public struct StorageOptions: Sendable {
  /// Refuse writes, and let several readers have the image.
  public var readOnly: Bool
  /// The size in bytes of a file that does not exist and is then created, sparse; nil creates nothing.
  public var createByteCount: UInt64?
  /// What the size must be a multiple of, in bytes.
  public var sectorSize: Int
  /// How long an image may still be locked by another program before it is refused, in milliseconds: one that was killed
  /// has its image until the system is done with it.
  public var lockPatience: UInt64

  /// Options; by themselves: for writing, nothing created, sectors of 512 bytes, no waiting.
  public init(
    readOnly: Bool = false, createByteCount: UInt64? = nil, sectorSize: Int = 512, lockPatience: UInt64 = 0
  ) {
    self.readOnly = readOnly
    self.createByteCount = createByteCount
    self.sectorSize = sectorSize
    self.lockPatience = lockPatience
  }

  /// Refuses a size that a disk cannot have.
  static func check(_ byteCount: UInt64, multipleOf sectorSize: Int, what: String) throws(StorageError) {
    guard byteCount > 0 else {
      throw StorageError(.badSize, "\(what) of no bytes cannot be served; give it a size")
    }
    guard byteCount % UInt64(sectorSize) == 0 else {
      let next = (byteCount / UInt64(sectorSize) &+ 1) &* UInt64(sectorSize)
      throw StorageError(
        .badSize,
        "\(what) of \(byteCount) bytes is no whole number of \(sectorSize)-byte sectors; the next size that is has "
          + "\(next) bytes")
    }
    guard byteCount <= maximumByteCount else {
      throw StorageError(
        .badSize,
        "\(what) of \(byteCount) bytes is more than the \(maximumByteCount) that a file offset can name")
    }
  }

  /// The last whole 4,096-byte sector that an off_t can name.
  static let maximumByteCount = UInt64(Int64.max) & ~4095
}

/// Sizes as people write them.
public enum ByteSize {
  /// Reads a number of bytes: digits, then nothing or one of K, M, G, T, P, E (powers of 1,024), with or without
  /// `iB` behind it, in either case.
  public static func parse(_ text: some StringProtocol) throws(StorageError) -> UInt64 {
    let digits = text.utf8.prefix { $0 >= UInt8(ascii: "0") && $0 <= UInt8(ascii: "9") }
    var suffix = String(decoding: text.utf8.dropFirst(digits.count), as: UTF8.self).uppercased()
    if suffix.count == 3, suffix.hasSuffix("IB") { suffix.removeLast(2) }
    let shift: UInt64? =
      switch suffix {
      case "", "B": 0
      case "K": 10
      case "M": 20
      case "G": 30
      case "T": 40
      case "P": 50
      case "E": 60
      default: nil
      }
    guard let shift, !digits.isEmpty else {
      throw StorageError(
        .malformed, "\"\(text)\" is no size; write bytes, or a whole number with K, M, G or T, such as 512M")
    }
    var value: UInt64 = 0
    for digit in digits {
      let (product, first) = value.multipliedReportingOverflow(by: 10)
      let (sum, second) = product.addingReportingOverflow(UInt64(digit - UInt8(ascii: "0")))
      guard !first, !second else { throw tooLarge(text) }
      value = sum
    }
    guard value <= UInt64(Int64.max) >> shift else { throw tooLarge(text) }
    return value << shift
  }

  private static func tooLarge(_ text: some StringProtocol) -> StorageError {
    StorageError(.badSize, "the size \"\(text)\" is more than a file can have")
  }
}
