// SPDX-License-Identifier: Apache-2.0
//
// xenstore: the small tree in which domains tell each other what they are. Never on a request's path.

/// A connection to xenstore (docs/misc/xenstore.txt, xenstore.h).
///
/// What every implementation guarantees, and the conformance tests check:
/// * Paths that do not begin with `/` are relative to the connection's own domain (`/local/domain/<domid>`).
/// * Writing a node creates its missing parents. Removing one removes everything under it.
/// * A transaction sees the tree as it was when it began plus its own changes; it commits whole or conflicts.
/// * A watch fires once as soon as it is registered, then after each change at or under its path, with the path
///   in the form (absolute or relative) that it was registered in. Events of one watch keep their order.
///
/// Calls may come from any thread; each waits for its answer (tens to hundreds of microseconds).
public protocol XenStore: XenStoreOperations, AnyObject, Sendable {
  /// Runs `body` in a transaction; on a conflict runs it again, up to a bound.
  ///
  /// - Parameter body: reads and writes through the operations it is given; throwing aborts the transaction.
  /// - Throws: what `body` throws, or `.conflict` when it never went through.
  func transaction<Value>(
    _ body: (any XenStoreOperations) throws(XenError) -> Value
  ) throws(XenError) -> Value

  /// Begins to watch a path.
  ///
  /// - Parameter token: comes back with every event; paths and tokens together name a watch. A second
  ///   one of the same name is an error or another watch, as xenstored or /dev/xen/xenbus has it: do not.
  func watch(_ path: String, token: String) throws(XenError)

  /// Ends a watch; late events of it are dropped.
  func unwatch(_ path: String, token: String) throws(XenError)

  /// Readable while `nextWatchEvent` would give an event. Owned by the connection.
  var fileDescriptor: Int32 { get }

  /// Takes a watch event without waiting.
  ///
  /// - Returns: the event; nil when none waits.
  func nextWatchEvent() throws(XenError) -> XenStoreWatchEvent?
}

/// What can be done to the tree, in a transaction or outside one.
public protocol XenStoreOperations {
  /// Reads a node.
  ///
  /// - Returns: its value; nil when there is no such node.
  func readBytes(_ path: String) throws(XenError) -> [UInt8]?

  /// Writes a node, at most 4,096 bytes with its path; missing parents are created.
  func write(_ path: String, _ value: [UInt8]) throws(XenError)

  /// The names of a node's children.
  ///
  /// - Returns: nil when there is no such node.
  func list(_ path: String) throws(XenError) -> [String]?

  /// Creates a node with an empty value; one that exists is left as it is.
  func makeDirectory(_ path: String) throws(XenError)

  /// Removes a node and everything under it; a missing one is no error.
  func remove(_ path: String) throws(XenError)

  /// Sets who may do what.
  ///
  /// - Parameter permissions: the first names the owner and what everyone not listed may do.
  func setPermissions(_ path: String, _ permissions: [XenStorePermission]) throws(XenError)

  /// Reads who may do what.
  ///
  /// - Returns: nil when there is no such node.
  func permissions(_ path: String) throws(XenError) -> [XenStorePermission]?
}

extension XenStoreOperations {
  /// Reads a node as text; bytes that are not UTF-8 become replacement characters.
  public func read(_ path: String) throws(XenError) -> String? {
    try readBytes(path).map { String(decoding: $0, as: UTF8.self) }
  }

  /// Writes text.
  public func write(_ path: String, _ value: String) throws(XenError) {
    try write(path, Array(value.utf8))
  }
}

/// One entry of a node's permissions (xs_lib.h: "b5" and the like).
public struct XenStorePermission: Hashable, Sendable {
  /// Whom it is about.
  public var domain: DomainID
  /// May it read the node, list its children and watch it.
  public var read: Bool
  /// May it write the node and create children.
  public var write: Bool
  /// An entry.
  public init(domain: DomainID, read: Bool, write: Bool) {
    self.domain = domain
    self.read = read
    self.write = write
  }
}

/// Something changed at or under a watched path.
public struct XenStoreWatchEvent: Hashable, Sendable {
  /// What changed.
  public let path: String
  /// The token the watch was registered with.
  public let token: String
  /// An event.
  public init(path: String, token: String) {
    self.path = path
    self.token = token
  }
}
