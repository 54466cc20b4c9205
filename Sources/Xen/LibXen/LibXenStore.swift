// SPDX-License-Identifier: Apache-2.0
//
// xenstore through libxenstore: a socket (xenstored, the loopback) or /dev/xen/xenbus. The library locks inside;
// a thread of its own collects watch events once the first watch is registered.

internal import CXen
internal import Glibc
internal import Platform
internal import SystemPackage

/// A connection to xenstore.
public final class LibXenStore: XenStore {
  private let connection: LibXenStoreConnection
  /// Readable while a watch event waits.
  public let fileDescriptor: Int32

  /// How often a transaction that conflicts is run before `transaction` gives up.
  public static let transactionAttempts = 256

  /// Connects to the system's xenstore, wherever libxenstore finds it.
  ///
  /// - Throws: `.unavailable` with what to do.
  public convenience init() throws(XenError) {
    let (opened, failure) = LibXenStoreEnvironment.withSocket {
      (LibXenStoreConnection(name: "xenstore"), Errno.current)
    }
    guard let opened else { throw cannotOpen(failure, device: "/dev/xen/xenbus", module: "xenfs") }
    try self.init(adopting: opened)
  }

  /// Connects to a xenstore socket, such as a loopback domain's.
  ///
  /// libxenstore takes the path from the environment and nowhere else, so it is set for the moment of connecting,
  /// under a lock that this process's other connections take as well (LibXenStoreEnvironment.swift).
  ///
  /// - Parameter path: of the Unix socket, at most 107 bytes.
  /// - Throws: `.unavailable` when nothing answers there.
  public convenience init(socket path: String) throws(XenError) {
    // Without this look xs_open would silently fall back to /dev/xen/xenbus.
    do {
      _ = try UnixSocket.connect(path: path)
    } catch .pathTooLong {
      throw XenError(
        .invalid, "the xenstore socket's path \(path) is longer than 107 bytes; choose a shorter directory")
    } catch .system(let errno) {
      throw XenError(.unavailable, "no xenstore answers at \(path): \(errno)", errno: errno)
    } catch {
      throw XenError(.unavailable, "no xenstore answers at \(path): \(error)")
    }
    let (opened, failure) = LibXenStoreEnvironment.withSocket(at: path) {
      (LibXenStoreConnection(name: "xenstore at \(path)"), Errno.current)
    }
    guard let opened else {
      throw XenError(.unavailable, "cannot connect to xenstore at \(path): \(failure)", errno: failure)
    }
    try self.init(adopting: opened)
  }

  private init(adopting opened: LibXenStoreConnection) throws(XenError) {
    connection = opened
    fileDescriptor = opened.fileDescriptor
    guard fileDescriptor >= 0 else {
      throw XenError(errno: .current, "cannot get the watch descriptor of \(opened.name)")
    }
    closeOnExec(pipe: fileDescriptor)
  }

  private var operations: LibXenStoreOperations {
    LibXenStoreOperations(connection: connection, transaction: 0)
  }

  /// Runs `body` in a transaction until it does not conflict, at most `transactionAttempts` times.
  public func transaction<Value>(
    _ body: (any XenStoreOperations) throws(XenError) -> Value
  ) throws(XenError) -> Value {
    for _ in 0..<Self.transactionAttempts {
      let id = connection.startTransaction()
      guard id != 0 else { throw connection.failed("start a transaction") }
      let value: Value
      do {
        value = try body(LibXenStoreOperations(connection: connection, transaction: id))
      } catch {
        _ = connection.endTransaction(id, abort: true)
        throw error
      }
      if connection.endTransaction(id, abort: false) { return value }
      guard Errno.current == .resourceTemporarilyUnavailable else {
        throw connection.failed("commit a transaction")
      }
    }
    throw XenError(
      .conflict,
      "a transaction in \(connection.name) met somebody else's changes \(Self.transactionAttempts) times in a row",
      errno: .resourceTemporarilyUnavailable)
  }

  /// Begins to watch a path (xs_watch).
  public func watch(_ path: String, token: String) throws(XenError) {
    try connection.check(path)
    try connection.check(token)
    guard connection.watch(path, token: token) else { throw connection.watchFailed(path, token) }
  }

  /// Ends a watch (xs_unwatch).
  public func unwatch(_ path: String, token: String) throws(XenError) {
    try connection.check(path)
    try connection.check(token)
    guard connection.unwatch(path, token: token) else { throw connection.failed("stop watching", path) }
  }

  /// Takes a watch event (xs_check_watch).
  public func nextWatchEvent() throws(XenError) -> XenStoreWatchEvent? {
    if let event = connection.nextWatchEvent() { return event }
    let failure = Errno.current
    guard failure == .resourceTemporarilyUnavailable || failure == .wouldBlock else {
      throw XenError(.disconnected, "\(connection.name) has closed the connection", errno: failure)
    }
    // The library's reader closes its end of the pipe when the connection is gone, and then says EAGAIN for ever.
    var look = pollfd(fd: fileDescriptor, events: Int16(POLLIN), revents: 0)
    // SAFETY: one descriptor to look at, in a variable here.
    if unsafe poll(&look, 1, 0) == 1, look.revents & Int16(POLLHUP) != 0 {
      throw XenError(.disconnected, "\(connection.name) has closed the connection")
    }
    return nil
  }

  /// Reads a node (xs_read).
  public func readBytes(_ path: String) throws(XenError) -> [UInt8]? { try operations.readBytes(path) }
  /// Writes a node (xs_write).
  public func write(_ path: String, _ value: [UInt8]) throws(XenError) { try operations.write(path, value) }
  /// Lists a node's children (xs_directory).
  public func list(_ path: String) throws(XenError) -> [String]? { try operations.list(path) }
  /// Creates a node (xs_mkdir).
  public func makeDirectory(_ path: String) throws(XenError) { try operations.makeDirectory(path) }
  /// Removes a node and everything under it (xs_rm).
  public func remove(_ path: String) throws(XenError) { try operations.remove(path) }
  /// Sets a node's permissions (xs_set_permissions).
  public func setPermissions(_ path: String, _ permissions: [XenStorePermission]) throws(XenError) {
    try operations.setPermissions(path, permissions)
  }
  /// Reads a node's permissions (xs_get_permissions).
  public func permissions(_ path: String) throws(XenError) -> [XenStorePermission]? {
    try operations.permissions(path)
  }
}

/// Sets close-on-exec on both ends of a pipe of which one is known: libxenstore opens its watch pipe without.
private func closeOnExec(pipe known: Int32) {
  _ = cxen_set_cloexec(known, 1)
  var status = stat()
  // SAFETY: writes into a variable here.
  guard unsafe fstat(known, &status) == 0 else { return }
  // The other end was opened by the same call, so its number is near.
  for candidate in max(0, known - 8)...(known + 8) where candidate != known {
    var other = stat()
    // SAFETY: as above; a number that is no descriptor is refused.
    if unsafe fstat(candidate, &other) == 0, other.st_ino == status.st_ino, other.st_dev == status.st_dev {
      _ = cxen_set_cloexec(candidate, 1)
    }
  }
}
