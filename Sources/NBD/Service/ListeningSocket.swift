// SPDX-License-Identifier: Apache-2.0
//
// Where clients connect: a path, a TCP address, or a socket that somebody else opened.

internal import CXen
internal import Glibc
public import Platform
public import SystemPackage

/// Why an address cannot be listened on.
public struct ListeningError: Error, Sendable, Equatable, CustomStringConvertible {
  /// A sentence: what failed, where, what to do.
  public let description: String

  init(_ description: String) {
    self.description = description
  }
}

/// A listening stream socket, closed and its path removed when the last reference goes.
public final class ListeningSocket: Sendable {
  /// What the socket is bound to.
  public enum Address: Sendable, Equatable {
    /// A Unix socket by path.
    case unix(String)
    /// A TCP address by number, and the port.
    case tcp(host: String, port: UInt16)
    /// Inherited, and of a kind that has no URI.
    case other
  }

  let descriptor: OwnedDescriptor
  /// What the socket is bound to.
  public let address: Address
  private let ownedPath: String?
  /// What lay there when it was ours.
  private let owned: FileIdentity?

  private init(_ descriptor: consuming OwnedDescriptor, _ address: Address, ownedPath: String? = nil) {
    self.descriptor = descriptor
    self.address = address
    self.ownedPath = ownedPath
    owned = ownedPath.flatMap { FileIdentity($0) }
  }

  deinit {
    // Another server may have taken the place.
    guard let ownedPath, let owned, owned == FileIdentity(ownedPath) else { return }
    // SAFETY: the call reads the string, which is there for as long as it lasts.
    _ = unsafe unlink(ownedPath)
  }

  /// Listens on a Unix socket that only this user may connect to.
  ///
  /// - Parameters:
  ///   - path: at most 107 bytes; a dead server's socket there is replaced, a live one's is not.
  ///   - mode: the permissions of the socket file.
  public static func unix(path: String, mode: FilePermissions = .ownerReadWrite)
    throws(ListeningError) -> ListeningSocket
  {
    do throws(ListenError) {
      let descriptor = try UnixSocket.listen(path: path, mode: mode)
      return ListeningSocket(descriptor, .unix(path), ownedPath: path)
    } catch {
      switch error {
      case .inUse:
        throw ListeningError(
          "a server answers at the socket \(path) already; stop it or choose another path")
      case .notASocket:
        throw ListeningError("\(path) exists and is not a socket; choose another path or remove it")
      case .noPath:
        throw ListeningError("the socket's path is empty; name a file that does not exist yet")
      case .pathTooLong:
        throw ListeningError(
          "the socket path \(path) is longer than the 107 bytes that an address holds; choose a shorter one")
      case .system(let code):
        throw ListeningError("cannot listen on the socket \(path): \(code)")
      }
    }
  }

  /// Listens on a TCP address.
  ///
  /// - Parameters:
  ///   - host: a name or a number; the first address that it has is used.
  ///   - port: 0 lets the system choose.
  public static func tcp(host: String = "127.0.0.1", port: UInt16 = 10809) throws(ListeningError)
    -> ListeningSocket
  {
    // SAFETY of all in this block: the hints and the pointer to the results are locals; the list is the C library's, not
    // null where it said so, and is freed once, after the last use of it.
    var hints = unsafe addrinfo()
    unsafe hints.ai_socktype = Int32(SOCK_STREAM.rawValue)
    unsafe hints.ai_flags = AI_NUMERICSERV | AI_PASSIVE
    var results: UnsafeMutablePointer<addrinfo>?
    let code = unsafe getaddrinfo(host, String(port), &hints, &results)
    guard code == 0, let first = unsafe results else {
      throw ListeningError("the host \(host) has no address: \(unsafe String(cString: gai_strerror(code)))")
    }
    defer { unsafe freeaddrinfo(results) }
    let raw = unsafe socket(first.pointee.ai_family, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
    guard raw >= 0 else { throw ListeningError("cannot make a socket for \(host): \(Errno.current)") }
    let descriptor = OwnedDescriptor(raw)
    setOption(raw, SOL_SOCKET, SO_REUSEADDR, to: 1)
    // SAFETY: see above.
    guard unsafe bind(raw, first.pointee.ai_addr, first.pointee.ai_addrlen) == 0, listen(raw, 128) == 0 else {
      throw ListeningError("cannot listen on \(host) port \(port): \(Errno.current)")
    }
    do throws(Errno) {
      try descriptor.setNonBlocking()
    } catch {
      throw ListeningError("cannot listen on \(host) port \(port): \(error)")
    }
    return ListeningSocket(descriptor, boundAddress(raw))
  }

  /// Takes on a listening socket that somebody else opened, such as those of `SocketActivation`.
  public static func inherited(_ descriptor: consuming OwnedDescriptor) throws(ListeningError)
    -> ListeningSocket
  {
    let raw = descriptor.raw
    guard let listens = option(raw, SOL_SOCKET, SO_ACCEPTCONN), listens != 0 else {
      throw ListeningError("the inherited descriptor \(raw) is not a listening socket")
    }
    do throws(Errno) {
      try descriptor.setNonBlocking()
    } catch {
      throw ListeningError("cannot use the inherited socket \(raw): \(error)")
    }
    return ListeningSocket(descriptor, boundAddress(raw))
  }

  /// Asks the kernel what a socket is bound to.
  private static func boundAddress(_ raw: Int32) -> Address {
    var storage = sockaddr_storage()
    var length = socklen_t(MemoryLayout<sockaddr_storage>.size)
    // SAFETY: the kernel fills the local variable, which is made to be seen as any address, and says how far.
    return unsafe withUnsafeMutablePointer(to: &storage) { pointer in
      unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { address in
        guard unsafe getsockname(raw, address, &length) == 0 else { return .other }
        length = min(length, socklen_t(MemoryLayout<sockaddr_storage>.size))
        if unsafe Int32(address.pointee.sa_family) == AF_UNIX {
          return unsafe unixAddress(UnsafeRawBufferPointer(start: address, count: Int(length)))
        }
        return unsafe internetAddress(address, length)
      }
    }
  }

  private static func unixAddress(_ address: UnsafeRawBufferPointer) -> Address {
    // SAFETY: a buffer with bounds, of which the caller promises that it is there.
    let bytes = unsafe Array(address.dropFirst(MemoryLayout<sa_family_t>.size))
    // An abstract address starts with a zero byte, an unnamed one has no bytes.
    guard let first = bytes.first, first != 0 else { return .other }
    return .unix(String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self))
  }

  private static func internetAddress(_ address: UnsafePointer<sockaddr>, _ length: socklen_t) -> Address {
    var host = [CChar](repeating: 0, count: 64)
    var port = [CChar](repeating: 0, count: 8)
    // SAFETY: the address is as long as the caller says; the two arrays are filled no further than they go.
    let code = unsafe getnameinfo(
      address, length, &host, socklen_t(host.count), &port, socklen_t(port.count),
      NI_NUMERICHOST | NI_NUMERICSERV)
    guard code == 0, let number = UInt16(text(port)) else { return .other }
    return .tcp(host: text(host), port: number)
  }

  private static func text(_ characters: [CChar]) -> String {
    String(decoding: characters.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
  }
}
