// SPDX-License-Identifier: Apache-2.0
//
// The loopback as one domain's process sees it: the four services of the seam.

internal import Glibc
internal import Platform
public import Xen

/// A place in a domain of a loopback host, of this process or another.
///
/// Several processes, or several parts of one, may join the same domain. What this one and its handles hold is given
/// back when the last of them is gone, by the process's death at the latest.
public final class LoopbackDomain: XenSystem {
  /// The domain's number.
  public let id: DomainID
  /// The host's directory.
  public let directory: String
  let connection: LoopbackConnection

  /// Joins a domain that exists.
  ///
  /// - Parameters:
  ///   - directory: the host's.
  ///   - domain: 0, or one that `LoopbackToolstack` has created.
  ///   - maptrack: how mappings find a free maptrack handle.
  /// - Throws: `.unavailable` when no host answers, `.notFound` when there is no such domain.
  public init(
    joining directory: String, domain: DomainID, maptrack: MaptrackPolicy = .perVCPU
  ) throws(XenError) {
    self.directory = directory
    id = domain
    connection = try LoopbackConnection(directory: directory, domain: domain.rawValue, policy: maptrack)
  }

  /// "loopback" with directory and domain.
  public var description: String { "loopback \(directory), domain \(id)" }

  /// The directory's absolute path and the domain.
  public var identity: String? { "loopback \(absolutePath(directory)) \(id)" }

  /// Whether the host still has this join; false once the host, or the domain, has ended.
  public var isConnected: Bool { connection.control.isConnected }

  /// The socket that this domain's xenstore clients connect to; what `XENSTORED_PATH` is set to.
  public var xenStoreSocket: String { LoopbackPaths.store(directory, id.rawValue) }

  /// Opens the sharing side of grants.
  public func openGrantSharing() throws(XenError) -> any GrantSharing { LoopbackGrantSharing(connection) }

  /// Opens the mapping side of grants.
  public func openGrantMapping() throws(XenError) -> any GrantMapping { LoopbackGrantMapping(connection) }

  /// Opens a set of event channels.
  public func openEventChannels() throws(XenError) -> any EventChannels {
    try LoopbackEventChannels(connection)
  }

  /// Connects to xenstore as this domain, through libxenstore.
  public func openXenStore() throws(XenError) -> any XenStore { try LibXenStore(socket: xenStoreSocket) }
}

/// A path without links; as it is given when it does not exist.
private func absolutePath(_ path: String) -> String {
  // SAFETY: realpath(3) makes a string that ends in NUL and is the caller's to free.
  guard let resolved = unsafe realpath(path, nil) else { return path }
  defer { unsafe free(resolved) }
  return unsafe String(cString: resolved)
}
