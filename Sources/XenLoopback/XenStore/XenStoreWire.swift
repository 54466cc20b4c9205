// SPDX-License-Identifier: Apache-2.0
//
// xenstore's messages as they are on the socket (io/xs_wire.h, docs/misc/xenstore.txt): a header of four 32-bit
// numbers, then at most 4,096 bytes, mostly strings that end in NUL.

internal import CXen

/// The limits of the protocol and of a guest (xs_wire.h; xenstored's default quotas).
enum XenStoreLimits {
  static let headerBytes = 16
  static let payloadBytes = 4096
  static let absolutePathBytes = 3072
  static let relativePathBytes = 2048
  /// What a guest may own or hold; the control domain is not limited.
  static let guestNodes = 1000
  static let guestWatches = 128
  static let guestTransactions = 10
  /// Nodes that a transaction looks at, each counted once, and changes that it makes.
  static let guestTransactionNodes = 1024
  static let guestTransactionChanges = 4096
  static let guestNodeBytes = 2048
  static let guestPermissions = 5
  /// Connections to a guest's socket; Xen's guests have one, the page that they share with xenstored.
  static let guestConnections = 64
  /// Unsent bytes beyond which requests of a connection wait, and beyond which it is closed as stuck.
  static let outputPause = 256 << 10
  static let outputBound = 2 << 20
  /// Bytes that were sent before they are given back, as long as others wait behind them.
  static let outputSlack = 64 << 10
}

/// What a request asks for (xs_wire.h: enum xsd_sockmsg_type).
enum XenStoreOperation: UInt32 {
  case control = 0
  case directory = 1
  case read = 2
  case getPermissions = 3
  case watch = 4
  case unwatch = 5
  case transactionStart = 6
  case transactionEnd = 7
  case introduce = 8
  case release = 9
  case getDomainPath = 10
  case write = 11
  case makeDirectory = 12
  case remove = 13
  case setPermissions = 14
  case watchEvent = 15
  case error = 16
  case isDomainIntroduced = 17
  case resume = 18
  case setTarget = 19
  case resetWatches = 21
  case directoryPart = 22
}

/// Why a request failed; the name is what goes over the wire (xs_wire.h: xsd_errors).
enum XenStoreFailure: String, Error {
  case invalid = "EINVAL"
  case denied = "EACCES"
  case exists = "EEXIST"
  case notFound = "ENOENT"
  case noSpace = "ENOSPC"
  case notSupported = "ENOSYS"
  case busy = "EBUSY"
  case again = "EAGAIN"
  case tooBig = "E2BIG"
  case notPermitted = "EPERM"
}

/// The header in front of every request, reply and event.
struct XenStoreHeader {
  var type: UInt32
  var request: UInt32
  var transaction: UInt32
  var byteCount: UInt32

  /// Reads a header from the first 16 bytes; the numbers are in the machine's own order.
  init(_ bytes: [UInt8]) {
    type = bytes.number(0)
    request = bytes.number(1)
    transaction = bytes.number(2)
    byteCount = bytes.number(3)
  }

  init(type: UInt32, request: UInt32, transaction: UInt32, byteCount: Int) {
    self.type = type
    self.request = request
    self.transaction = transaction
    self.byteCount = UInt32(byteCount)
  }

  func append(to output: inout [UInt8]) {
    for number in [type, request, transaction, byteCount] {
      output.append(number: number)
    }
  }
}

/// A request's payload, taken apart at its NULs.
struct XenStorePayload {
  let bytes: [UInt8]

  /// The payload as exactly one string with its NUL at the end.
  func single() throws(XenStoreFailure) -> String {
    let strings = try strings()
    guard strings.count == 1, let only = strings.first else { throw .invalid }
    return only
  }

  /// The payload as strings that each end in NUL, with nothing behind the last.
  func strings() throws(XenStoreFailure) -> [String] {
    guard bytes.last == 0 else { throw .invalid }
    return bytes.dropLast().split(separator: 0, omittingEmptySubsequences: false).map { Self.text($0) }
  }

  /// The payload as a string with its NUL, and the bytes behind it.
  func stringAndRest() throws(XenStoreFailure) -> (String, [UInt8]) {
    guard let end = bytes.firstIndex(of: 0) else { throw .invalid }
    return (Self.text(bytes[..<end]), Array(bytes[(end + 1)...]))
  }

  // Bytes that are not UTF-8 become replacement characters, which no path may contain; tokens with such bytes
  // come back changed, as nothing that libxenstore's users send does.
  private static func text(_ bytes: ArraySlice<UInt8>) -> String {
    String(decoding: bytes, as: UTF8.self)
  }
}

/// A domain number in decimal, as requests carry it.
func parseDomain(_ text: String) throws(XenStoreFailure) -> UInt16 {
  guard !text.isEmpty, text.utf8.allSatisfy({ $0 >= 48 && $0 <= 57 }), let number = UInt16(text) else {
    throw .invalid
  }
  return number
}
