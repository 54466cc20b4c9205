// SPDX-License-Identifier: Apache-2.0
//
// The tree operations of libxenstore, inside a transaction or outside one.

internal import CXen
internal import SystemPackage

/// Operations under one transaction number; 0 is none.
struct LibXenStoreOperations: XenStoreOperations {
  let connection: LibXenStoreConnection
  let transaction: xs_transaction_t

  func readBytes(_ path: String) throws(XenError) -> [UInt8]? {
    try connection.check(path)
    guard let value = connection.read(transaction, path) else { return try missing("read", path) }
    return value
  }

  func write(_ path: String, _ value: [UInt8]) throws(XenError) {
    try connection.check(path)
    guard connection.write(transaction, path, value) else {
      throw connection.failed("write", path)
    }
  }

  func list(_ path: String) throws(XenError) -> [String]? {
    try connection.check(path)
    guard let names = connection.list(transaction, path) else { return try missing("list", path) }
    return names
  }

  func makeDirectory(_ path: String) throws(XenError) {
    try connection.check(path)
    guard connection.makeDirectory(transaction, path) else { throw connection.failed("create", path) }
  }

  func remove(_ path: String) throws(XenError) {
    try connection.check(path)
    guard !connection.remove(transaction, path) else { return }
    let error = connection.failed("remove", path)
    if error.errno != .noSuchFileOrDirectory { throw error }
  }

  func setPermissions(_ path: String, _ permissions: [XenStorePermission]) throws(XenError) {
    try connection.check(path)
    let raw = permissions.map { permission in
      xs_permissions(
        id: UInt32(permission.domain.rawValue),
        perms: (permission.read ? UInt32(XS_PERM_READ) : 0) | (permission.write ? UInt32(XS_PERM_WRITE) : 0))
    }
    guard connection.setPermissions(transaction, path, raw) else {
      throw connection.failed("set the permissions of", path)
    }
  }

  func permissions(_ path: String) throws(XenError) -> [XenStorePermission]? {
    try connection.check(path)
    guard let raw = connection.permissions(transaction, path) else {
      return try missing("read the permissions of", path)
    }
    return raw.map { permission in
      XenStorePermission(
        domain: DomainID(UInt16(truncatingIfNeeded: permission.id)),
        read: permission.perms & UInt32(XS_PERM_READ) != 0,
        write: permission.perms & UInt32(XS_PERM_WRITE) != 0)
    }
  }

  /// nil for a node that is not there, an error for anything else.
  private func missing<Value>(_ verb: String, _ path: String) throws(XenError) -> Value? {
    let error = connection.failed(verb, path)
    if error.errno == .noSuchFileOrDirectory { return nil }
    throw error
  }
}
