// SPDX-License-Identifier: Apache-2.0
//
// What a toolstack does on Xen (libxl): create and destroy domains, and the xenstore nodes of their devices. It works
// from any process that may enter the host's directory.

internal import Platform
internal import SystemPackage
public import Xen

/// How a loopback domain stands.
public struct LoopbackDomainStatus: Sendable, Equatable {
  /// Pages that it shares now.
  public let pagesShared: Int
  /// gntalloc's limit.
  public let pageLimit: Int
  /// Event-channel ports in use.
  public let ports: Int
  /// Processes, or parts of one, that have joined it.
  public let joins: Int
}

/// A toolstack over a loopback host; acts as domain 0.
public final class LoopbackToolstack: Sendable {
  /// The host's directory.
  public let directory: String
  /// xenstore, as domain 0.
  public let store: any XenStore
  private let control: ControlClient

  /// Connects to a host.
  ///
  /// - Throws: `.unavailable` when none answers in the directory.
  public init(directory: String) throws(XenError) {
    self.directory = directory
    control = try ControlClient(directory)
    store = try LibXenStore(socket: LoopbackPaths.store(directory, 0))
  }

  /// Creates a domain with the nodes that libxl gives one.
  ///
  /// - Parameters:
  ///   - domain: 1 to 0x7FEF.
  ///   - name: for people.
  ///   - pageLimit: gntalloc's limit, in pages, at most 32,760.
  ///   - maptrackLimit: how many pages of others it can have mapped; rounded up to whole frames of 128.
  /// - Throws: `.invalid` when the domain exists or a number is out of range.
  public func createDomain(
    _ domain: DomainID, name: String? = nil, pageLimit: Int = LoopbackDefaults.pageLimit,
    maptrackLimit: Int = LoopbackDefaults.maptrackLimit
  ) throws(XenError) {
    let frames = (max(1, maptrackLimit) + DomainLayout.entriesPerFrame - 1) / DomainLayout.entriesPerFrame
    try call(
      ControlMessage(
        .createDomain, a: UInt32(domain.rawValue), b: UInt32(clamping: pageLimit), c: UInt32(clamping: frames)
      ),
      "cannot create domain \(domain)")
    let home = "/local/domain/\(domain)"
    let readable = [
      XenStorePermission(domain: .dom0, read: false, write: false),
      XenStorePermission(domain: domain, read: true, write: false),
    ]
    let owned = [XenStorePermission(domain: domain, read: false, write: false)]
    try store.transaction { (operations) throws(XenError) in
      try operations.remove(home)
      try operations.makeDirectory(home)
      try operations.setPermissions(home, readable)
      for node in ["device", "control"] {
        try operations.makeDirectory("\(home)/\(node)")
        try operations.setPermissions("\(home)/\(node)", readable)
      }
      // What the domain may write itself; "backend" is there for driver domains.
      for node in ["backend", "data", "drivers", "feature", "attr", "error"] {
        try operations.makeDirectory("\(home)/\(node)")
        try operations.setPermissions("\(home)/\(node)", owned)
      }
      for (node, value) in [("domid", "\(domain)"), ("name", name ?? "domain-\(domain)")] {
        try operations.write("\(home)/\(node)", value)
        try operations.setPermissions("\(home)/\(node)", readable)
      }
    }
    try call(
      ControlMessage(.introduceDomain, a: UInt32(domain.rawValue)), "cannot introduce domain \(domain)")
  }

  /// Takes a domain out of existence, as `xl destroy` does: its joins are disconnected, @releaseDomain fires, its nodes are
  /// removed and those of its devices' backends.
  public func destroyDomain(_ domain: DomainID) throws(XenError) {
    let home = "/local/domain/\(domain)"
    do throws(XenError) {
      try call(ControlMessage(.destroyDomain, a: UInt32(domain.rawValue)), "cannot destroy domain \(domain)")
    } catch {
      // A toolstack may have come this far and no further.
      guard error.code == .notFound, try store.list(home) != nil else { throw error }
    }
    // The next domain of that number could read them, and would have the devices already. Not in a transaction: a domain
    // that changes its nodes all the time would make it fail.
    for owner in try store.list("/local/domain") ?? [] {
      let backends = "/local/domain/\(owner)/backend"
      for kind in try store.list(backends) ?? [] { try store.remove("\(backends)/\(kind)/\(domain)") }
    }
    try store.remove(home)
  }

  /// Changes gntalloc's limit of a domain while it runs; what is shared already stays shared.
  public func setPageLimit(_ pages: Int, of domain: DomainID) throws(XenError) {
    try call(
      ControlMessage(.setPageLimit, a: UInt32(domain.rawValue), b: UInt32(clamping: pages)),
      "cannot set the page limit of domain \(domain) to \(pages), which may be at most "
        + "\(DomainLayout.grantCount - DomainLayout.firstGrant)")
  }

  /// How a domain stands.
  public func status(of domain: DomainID) throws(XenError) -> LoopbackDomainStatus {
    let reply = try call(
      ControlMessage(.status, a: UInt32(domain.rawValue)), "cannot look at domain \(domain)")
    return LoopbackDomainStatus(
      pagesShared: Int(reply.a), pageLimit: Int(reply.b), ports: Int(reply.c), joins: Int(reply.d))
  }

  // MARK: block devices

  /// Writes the nodes of a block device, in one transaction; both ends find them in state 1.
  public func attach(_ device: LoopbackBlockDevice) throws(XenError) {
    try store.transaction { (operations) throws(XenError) in
      for path in [device.frontendPath, device.backendPath]
      where try operations.read("\(path)/state") != nil {
        throw XenError(.invalid, "cannot attach \(device.name): \(path) exists; detach it first")
      }
      try device.writeFrontend(operations)
      try device.writeBackend(operations)
    }
  }

  /// Makes the backend's nodes anew, in state 1: for a backend that starts in the place of one that has died.
  ///
  /// Only after the frontend has left the states in which it has a ring: what is published there would be taken for
  /// the new backend's.
  public func renewBackend(_ device: LoopbackBlockDevice) throws(XenError) {
    try store.transaction { (operations) throws(XenError) in try device.writeBackend(operations) }
  }

  /// Asks the backend to let go, as `xl block-detach` does: `online` 0 and `state` 5 in one transaction.
  ///
  /// Both ends then go to state 6; remove the nodes with `forget` when the backend is there.
  public func detach(_ device: LoopbackBlockDevice) throws(XenError) {
    let path = device.backendPath
    try store.transaction { (operations) throws(XenError) in
      guard try operations.read("\(path)/state") != nil else {
        throw XenError(.notFound, "cannot detach \(device.name): there is no \(path)/state")
      }
      try operations.write("\(path)/online", "0")
      try operations.write("\(path)/state", "5")
    }
  }

  /// Removes a device's nodes without a word to either end, as `xl block-detach --force` does.
  public func forget(_ device: LoopbackBlockDevice) throws(XenError) {
    try store.transaction { (operations) throws(XenError) in
      try operations.remove(device.frontendPath)
      try operations.remove(device.backendPath)
    }
  }

  /// Migrates a domain to where it is: what it shared and bound means nothing any more, and the toolstack makes its
  /// devices anew, as `xl migrate` and `xl restore` do; see docs/loopback.md.
  ///
  /// The domain keeps its number and its memory, and is not stopped meanwhile.
  ///
  /// A device whose two directories do not name each other is left alone: the frontend's belongs to the domain, which
  /// may have written another domain's backend into it, or nonsense.
  ///
  /// - Returns: how many block devices were made anew.
  /// - Throws: `.notFound` when there is no such domain.
  @discardableResult
  public func migrate(_ domain: DomainID) throws(XenError) -> Int {
    let home = "/local/domain/\(domain)"
    try call(
      ControlMessage(.invalidateDomain, a: UInt32(domain.rawValue)), "cannot migrate domain \(domain)")
    return try store.transaction { (operations) throws(XenError) in
      let numbers = try operations.list("\(home)/device/vbd") ?? []
      var count = 0
      for number in numbers where try renew("\(home)/device/vbd/\(number)", operations) { count += 1 }
      // Every watch on the domain's own nodes fires, as the kernel makes them fire after a resume.
      try operations.write("\(home)/domid", "\(domain)")
      return count
    }
  }

  /// Puts both directories of a device back to what the toolstack had written: no ring, no features, state 1.
  ///
  /// - Returns: false when they are not a device.
  private func renew(_ front: String, _ operations: any XenStoreOperations) throws(XenError) -> Bool {
    guard let back = try backend(of: front, operations) else { return false }
    for name in try operations.list(front) ?? [] where !LoopbackBlockDevice.frontendNodes.contains(name) {
      try operations.remove("\(front)/\(name)")
    }
    for name in try operations.list(back) ?? [] where LoopbackBlockDevice.isPublished(name) {
      try operations.remove("\(back)/\(name)")
    }
    for path in [front, back] { try operations.write("\(path)/state", "1") }
    return true
  }

  /// The backend's directory of a device, if it says the same of itself.
  private func backend(of front: String, _ operations: any XenStoreOperations) throws(XenError) -> String? {
    guard let back = try operations.read("\(front)/backend") else { return nil }
    do throws(XenError) {
      return try operations.read("\(back)/frontend") == front ? back : nil
    } catch {
      // What the domain has written is no path.
      if error.code == .invalid { return nil }
      throw error
    }
  }

  @discardableResult
  private func call(_ request: ControlMessage, _ what: String) throws(XenError) -> ControlMessage {
    do throws(Errno) {
      return try control.call(request).message
    } catch {
      let sentence = "\(what) in the loopback \(directory)"
      if error == .fileExists { throw XenError(.invalid, "\(sentence): it exists already", errno: error) }
      if error == .noSuchFileOrDirectory {
        throw XenError(.notFound, "\(sentence): it does not exist", errno: error)
      }
      throw XenError(errno: error, sentence)
    }
  }
}
