// SPDX-License-Identifier: Apache-2.0
//
// Unix-domain stream sockets: binding a path without trampling on a live server, connecting, accepting.

internal import CXen
internal import Glibc
public import SystemPackage

/// Why a path could not be listened on.
public enum ListenError: Error, Equatable, Sendable {
  /// Another server answers there.
  case inUse
  /// There is a file at the path that is not a socket.
  case notASocket
  /// A path longer than the 107 bytes that an address holds.
  case pathTooLong
  /// No path at all, which would be a name without a file, and without its permissions (unix(7), "abstract").
  case noPath
  /// Anything else.
  case system(Errno)
}

/// Unix-domain stream sockets by path.
public enum UnixSocket {
  /// Listens on a path; a socket file that a dead server left there is replaced.
  ///
  /// - Parameters:
  ///   - path: at most 107 bytes.
  ///   - mode: the permissions of the socket file, set before anyone can connect.
  /// - Returns: the listening socket, non-blocking and close-on-exec. The caller removes the path when done.
  public static func listen(path: String, mode: FilePermissions = [.ownerReadWrite]) throws(ListenError)
    -> OwnedDescriptor
  {
    let socket = try makeSocket()
    do throws(ListenError) {
      try bind(socket.raw, path, mode)
    } catch .system(.addressInUse) {
      try removeDeadSocket(path)
      try bind(socket.raw, path, mode)
    }
    guard Glibc.listen(socket.raw, 128) == 0 else { throw .system(.current) }
    do { try socket.setNonBlocking() } catch { throw .system(error) }
    return socket
  }

  /// Connects to a path.
  ///
  /// - Returns: the connected socket, blocking and close-on-exec.
  public static func connect(path: String) throws(ListenError) -> OwnedDescriptor {
    let socket = try makeSocket()
    // SAFETY: the address is only used during the call.
    let result = try unsafe withAddress(path) { address, length in
      unsafe Glibc.connect(socket.raw, address, length)
    }
    guard result == 0 else { throw .system(.current) }
    return socket
  }

  /// Takes one waiting connection.
  ///
  /// - Returns: the connection, non-blocking and close-on-exec; nil when none waits.
  public static func accept(_ listener: Int32) throws(Errno) -> Int32? {
    do throws(Errno) {
      return try retrying {
        cxen_accept4(listener, Int32(SOCK_NONBLOCK.rawValue | SOCK_CLOEXEC.rawValue))
      }
    } catch {
      if error == .wouldBlock || error == .resourceTemporarilyUnavailable || error == .connectionAbort {
        return nil
      }
      throw error
    }
  }

  private static func makeSocket() throws(ListenError) -> OwnedDescriptor {
    let raw = Glibc.socket(AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
    guard raw >= 0 else { throw .system(.current) }
    return OwnedDescriptor(raw)
  }

  private static func bind(_ socket: Int32, _ path: String, _ mode: FilePermissions) throws(ListenError) {
    // fchmod on the socket before bind gives the file its mode from its first moment (unix(7)).
    guard Glibc.fchmod(socket, mode.rawValue) == 0 else { throw .system(.current) }
    // SAFETY: the address is only used during the call.
    let result = try unsafe withAddress(path) { address, length in unsafe Glibc.bind(socket, address, length)
    }
    guard result == 0 else { throw .system(.current) }
  }

  private static func removeDeadSocket(_ path: String) throws(ListenError) {
    var status = Glibc.stat()
    // SAFETY: the string ends in NUL for the call, which writes to the local variable.
    guard unsafe Glibc.lstat(path, &status) == 0 else { throw .system(.current) }
    guard status.st_mode & S_IFMT == S_IFSOCK else { throw .notASocket }
    // Without blocking: a server with a full backlog lives, and might never get round to a connection of ours.
    let probe = try makeSocket()
    do { try probe.setNonBlocking() } catch { throw .system(error) }
    // SAFETY: the address is only used during the call.
    let result = try unsafe withAddress(path) { address, length in
      unsafe Glibc.connect(probe.raw, address, length)
    }
    let error = Errno.current
    if result == 0 || error == .wouldBlock { throw .inUse }
    // SAFETY: the string ends in NUL for the call.
    guard error == .connectionRefused, unsafe unlink(path) == 0 else { throw .system(error) }
  }

  private static func withAddress(
    _ path: String, _ body: (UnsafePointer<sockaddr>, socklen_t) -> Int32
  ) throws(ListenError) -> Int32 {
    var address = sockaddr_un()
    address.sun_family = sa_family_t(AF_UNIX)
    let bytes = Array(path.utf8)
    guard !bytes.isEmpty else { throw .noPath }
    guard bytes.count < MemoryLayout.size(ofValue: address.sun_path) else { throw .pathTooLong }
    // SAFETY: `bytes` was checked to fit into sun_path; a sockaddr_un may be looked at as a sockaddr.
    unsafe withUnsafeMutableBytes(of: &address.sun_path) { unsafe $0.copyBytes(from: bytes) }
    return unsafe withUnsafePointer(to: &address) { pointer in
      unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { rebound in
        unsafe body(rebound, socklen_t(MemoryLayout<sockaddr_un>.size))
      }
    }
  }
}
