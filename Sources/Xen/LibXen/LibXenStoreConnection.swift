// SPDX-License-Identifier: Apache-2.0
//
// A connection of libxenstore, and its calls with strings and arrays. What a call allocates for its caller is a
// LibXenStoreMemory, from which the answer is copied.

internal import CXen
internal import Platform
internal import SystemPackage

/// An open library handle; closed with the last user.
///
/// A call that fails gives nil or false, with the reason in errno.
@safe final class LibXenStoreConnection: Sendable {
  // SAFETY: what xs_open returned to `init`, closed in the deinit, so open during every call below. They may be made by any
  // thread: libxenstore has one mutex for requests and one for watch events.
  private nonisolated(unsafe) let handle: OpaquePointer
  let name: String

  /// Connects to where the environment says (LibXenStoreEnvironment.swift).
  init?(name: String) {
    // SAFETY: a number; NULL means no.
    guard let opened = unsafe xs_open(UInt(XS_UNWATCH_FILTER)) else { return nil }
    unsafe handle = opened
    self.name = name
  }

  deinit {
    // SAFETY: nobody has this object any more, so no call is under way; the library ends its own thread first.
    unsafe xs_close(handle)
  }

  /// The pipe that is readable while a watch event waits; negative when it could not be made.
  // SAFETY: see `handle`.
  var fileDescriptor: Int32 { unsafe xs_fileno(handle) }

  // MARK: Transactions and watches

  /// - Returns: the transaction's number, or 0.
  // SAFETY: see `handle`; transactions are numbers, which xenstored knows or refuses.
  func startTransaction() -> xs_transaction_t { unsafe xs_transaction_start(handle) }

  func endTransaction(_ transaction: xs_transaction_t, abort: Bool) -> Bool {
    // SAFETY: as above.
    unsafe xs_transaction_end(handle, transaction, abort)
  }

  // SAFETY of watching: the library sends both strings and keeps neither.
  func watch(_ path: String, token: String) -> Bool { unsafe xs_watch(handle, path, token) }
  func unwatch(_ path: String, token: String) -> Bool { unsafe xs_unwatch(handle, path, token) }

  func nextWatchEvent() -> XenStoreWatchEvent? {
    // SAFETY: the library splits up what xenstored has sent, which is a path and a token, each with its NUL.
    guard let strings = unsafe LibXenStoreMemory(xs_check_watch(handle), count: 2)?.strings else {
      return nil
    }
    return XenStoreWatchEvent(path: strings[0], token: strings[1])
  }

  // MARK: Nodes

  func read(_ transaction: xs_transaction_t, _ path: String) -> [UInt8]? {
    var length: UInt32 = 0
    // SAFETY: the call sets the length before its result is looked at; the path is lent to it.
    let value = unsafe xs_read(handle, transaction, path, &length)?.assumingMemoryBound(to: UInt8.self)
    return unsafe LibXenStoreMemory(value, count: Int(length))?.elements
  }

  func write(_ transaction: xs_transaction_t, _ path: String, _ value: [UInt8]) -> Bool {
    // SAFETY: path and value are lent for the call, with the value's own length; one that is too long is refused.
    unsafe xs_write(handle, transaction, path, value, UInt32(value.count))
  }

  func list(_ transaction: xs_transaction_t, _ path: String) -> [String]? {
    var count: UInt32 = 0
    // SAFETY: the call sets the count before its result is looked at; the path is lent to it.
    let names = unsafe xs_directory(handle, transaction, path, &count)
    return unsafe LibXenStoreMemory(names, count: Int(count))?.strings
  }

  func makeDirectory(_ transaction: xs_transaction_t, _ path: String) -> Bool {
    // SAFETY: the path is lent for the call.
    unsafe xs_mkdir(handle, transaction, path)
  }

  func remove(_ transaction: xs_transaction_t, _ path: String) -> Bool {
    // SAFETY: as in `makeDirectory`.
    unsafe xs_rm(handle, transaction, path)
  }

  func setPermissions(_ transaction: xs_transaction_t, _ path: String, _ permissions: [xs_permissions])
    -> Bool
  {
    var permissions = permissions
    // SAFETY: as many as are said, a copy of ours; the library reads them only, although it does not say const.
    return unsafe xs_set_permissions(handle, transaction, path, &permissions, UInt32(permissions.count))
  }

  func permissions(_ transaction: xs_transaction_t, _ path: String) -> [xs_permissions]? {
    var count: UInt32 = 0
    // SAFETY: the call sets the count before its result is looked at; the path is lent to it.
    let permissions = unsafe xs_get_permissions(handle, transaction, path, &count)
    return unsafe LibXenStoreMemory(permissions, count: Int(count))?.elements
  }

  // MARK: Failures

  /// A string with a NUL in it would be cut short by C.
  func check(_ string: String) throws(XenError) {
    if string.utf8.contains(0) {
      throw XenError(.invalid, "\"\(string)\" contains a NUL, which \(name) cannot take")
    }
  }

  /// Why the last call failed.
  func failed(_ verb: String, _ path: String) -> XenError { failed("\(verb) \(path)") }

  /// Why the last call failed.
  ///
  /// - Parameter what: was being done: "start a transaction".
  func failed(_ what: String) -> XenError {
    let errno = Errno.current
    if errno == .noSpace { return quotaIsUsedUp(what, errno) }
    if errno == .invalidArgument, isOver {
      return XenError(
        .disconnected, "cannot \(what): \(name) has closed the connection", errno: errno)
    }
    return XenError(errno: errno, "cannot \(what) in \(name)")
  }

  /// Why the last call, for a watch, failed.
  ///
  /// For one too many xenstored says E2BIG up to Xen 4.20. So does the library for what is too long for a request.
  func watchFailed(_ path: String, _ token: String) -> XenError {
    let errno = Errno.current
    let byteCount = path.utf8.count + token.utf8.count + 2
    if errno == .argListTooLong, byteCount <= XENSTORE_PAYLOAD_MAX {
      return quotaIsUsedUp("watch \(path)", errno)
    }
    return failed("watch", path)
  }

  private func quotaIsUsedUp(_ what: String, _ errno: Errno) -> XenError {
    XenError(.limitReached, "cannot \(what) in \(name): this domain's quota is used up", errno: errno)
  }

  /// Whether there is no connection any more.
  ///
  /// The call that waits for its answer while that happens says EINVAL, as xenstored does of a path that it dislikes. The
  /// next one cannot be sent.
  private var isOver: Bool {
    guard read(0, "domid") == nil else { return false }
    let errno = Errno.current
    return errno == .badFileDescriptor || errno == .brokenPipe
  }
}
