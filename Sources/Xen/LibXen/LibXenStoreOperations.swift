// SPDX-License-Identifier: Apache-2.0
//
// The tree operations of libxenstore, inside a transaction or outside one.

internal import CXen
internal import Glibc
internal import Platform
internal import SystemPackage

/// An open library handle; closed with the last user.
final class LibXenStoreConnection: Sendable {
  // SAFETY: libxenstore serialises requests with a mutex of its own.
  nonisolated(unsafe) let handle: OpaquePointer
  let name: String

  init(handle: OpaquePointer, name: String) {
    self.handle = handle
    self.name = name
  }

  deinit {
    xs_close(handle)
  }

  /// A string with a NUL in it would be cut short by C.
  func check(_ string: String) throws(XenError) {
    if string.utf8.contains(0) {
      throw XenError(.invalid, "\"\(string)\" contains a NUL, which \(name) cannot take")
    }
  }

  func failed(_ verb: String, _ path: String) -> XenError {
    let errno = Errno.current
    if errno == .noSpace {
      return XenError(
        .limitReached, "cannot \(verb) \(path) in \(name): this domain's quota is used up", errno: errno)
    }
    return XenError(errno: errno, "cannot \(verb) \(path) in \(name)")
  }
}

/// Operations under one transaction number; 0 is none.
struct LibXenStoreOperations: XenStoreOperations {
  let connection: LibXenStoreConnection
  let transaction: xs_transaction_t

  func readBytes(_ path: String) throws(XenError) -> [UInt8]? {
    try connection.check(path)
    var length: UInt32 = 0
    guard let value = xs_read(connection.handle, transaction, path, &length) else {
      return try missing("read", path)
    }
    defer { free(value) }
    return Array(UnsafeRawBufferPointer(start: value, count: Int(length)))
  }

  func write(_ path: String, _ value: [UInt8]) throws(XenError) {
    try connection.check(path)
    guard xs_write(connection.handle, transaction, path, value, UInt32(value.count)) else {
      throw connection.failed("write", path)
    }
  }

  func list(_ path: String) throws(XenError) -> [String]? {
    try connection.check(path)
    var count: UInt32 = 0
    guard let names = xs_directory(connection.handle, transaction, path, &count) else {
      return try missing("list", path)
    }
    defer { free(names) }
    return (0..<Int(count)).compactMap { names[$0].map { String(cString: $0) } }
  }

  func makeDirectory(_ path: String) throws(XenError) {
    try connection.check(path)
    guard xs_mkdir(connection.handle, transaction, path) else { throw connection.failed("create", path) }
  }

  func remove(_ path: String) throws(XenError) {
    try connection.check(path)
    guard !xs_rm(connection.handle, transaction, path) else { return }
    let error = connection.failed("remove", path)
    if error.errno != .noSuchFileOrDirectory { throw error }
  }

  func setPermissions(_ path: String, _ permissions: [XenStorePermission]) throws(XenError) {
    try connection.check(path)
    var raw = permissions.map { permission in
      xs_permissions(
        id: UInt32(permission.domain.rawValue),
        perms: (permission.read ? UInt32(XS_PERM_READ) : 0) | (permission.write ? UInt32(XS_PERM_WRITE) : 0))
    }
    guard xs_set_permissions(connection.handle, transaction, path, &raw, UInt32(raw.count)) else {
      throw connection.failed("set the permissions of", path)
    }
  }

  func permissions(_ path: String) throws(XenError) -> [XenStorePermission]? {
    try connection.check(path)
    var count: UInt32 = 0
    guard let raw = xs_get_permissions(connection.handle, transaction, path, &count) else {
      return try missing("read the permissions of", path)
    }
    defer { free(raw) }
    return (0..<Int(count)).map { index in
      XenStorePermission(
        domain: DomainID(UInt16(truncatingIfNeeded: raw[index].id)),
        read: raw[index].perms & UInt32(XS_PERM_READ) != 0,
        write: raw[index].perms & UInt32(XS_PERM_WRITE) != 0)
    }
  }

  /// nil for a node that is not there, an error for anything else.
  private func missing<Value>(_ verb: String, _ path: String) throws(XenError) -> Value? {
    let error = connection.failed(verb, path)
    if error.errno == .noSuchFileOrDirectory { return nil }
    throw error
  }
}
