// SPDX-License-Identifier: Apache-2.0
//
// A name that one process of the machine can have at a time: an abstract Unix socket (unix(7)), which leaves no
// file behind and is free again the moment its owner dies, however it dies.

internal import CXen
internal import Glibc
public import SystemPackage

/// A machine-wide name, held for as long as this value lives.
public struct NameClaim: ~Copyable, Sendable {
  private let socket: OwnedDescriptor

  /// Takes a name.
  ///
  /// - Parameter name: anything; long names are told apart by a 64-bit hash.
  /// - Throws: `.addressInUse` when somebody has it.
  public init(_ name: String) throws(Errno) {
    socket = try Self.claim(name)
  }

  private static func claim(_ name: String) throws(Errno) -> OwnedDescriptor {
    let raw = Glibc.socket(AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
    guard raw >= 0 else { throw .current }
    let socket = OwnedDescriptor(raw)
    var address = sockaddr_un()
    address.sun_family = sa_family_t(AF_UNIX)
    // A first byte of zero makes the name abstract.
    let bytes = [0] + Array("xbd-user/\(String(Self.hash(name), radix: 16))".utf8)
    // SAFETY: `bytes` was checked to fit into sun_path; a sockaddr_un may be looked at as a sockaddr.
    unsafe withUnsafeMutableBytes(of: &address.sun_path) { unsafe $0.copyBytes(from: bytes) }
    let length = socklen_t(MemoryLayout<sa_family_t>.size + bytes.count)
    let result = unsafe withUnsafePointer(to: &address) { pointer in
      unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { unsafe bind(raw, $0, length) }
    }
    guard result == 0 else { throw .current }
    return socket
  }

  /// FNV-1a: the same in every process, unlike Swift's own hashes.
  private static func hash(_ text: String) -> UInt64 {
    text.utf8.reduce(0xcbf2_9ce4_8422_2325) { ($0 ^ UInt64($1)) &* 0x100_0000_01b3 }
  }
}
