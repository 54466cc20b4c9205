// SPDX-License-Identifier: Apache-2.0
//
// A device's two xenstore directories: where they are, and what a toolstack writes into them before either end looks
// (libxl: libxl__device_generic_add, device_disk_add). A backend that somebody starts by hand is its own toolstack;
// one that finds the nodes there takes them over.

public import Blkif
public import Xen

/// Where a virtual block device is in xenstore, on both sides.
public struct DeviceDirectories: Equatable, Sendable {
  /// The domain that serves it.
  public let backend: DomainID
  /// The domain that uses it.
  public let frontend: DomainID
  /// The kind of backend, a directory's name: "vbd" is Linux's blkback, "qdisk" QEMU.
  public let kind: String
  /// The device's number in the frontend's domain.
  public let device: VirtualDevice

  /// The directories of a device.
  public init(device: VirtualDevice, of frontend: DomainID, servedBy backend: DomainID, kind: String) {
    self.device = device
    self.frontend = frontend
    self.backend = backend
    self.kind = kind
  }

  /// The directories of a device by its backend's.
  ///
  /// - Parameters:
  ///   - path: `/local/domain/0/backend/vbd/1/51728`, or `backend/vbd/1/51728` in the own domain.
  ///   - own: the own domain.
  /// - Throws: `.invalid` for a path that is none.
  public init(backendPath path: String, own: DomainID) throws(XenError) {
    var parts = path.split(separator: "/", omittingEmptySubsequences: false).map(String.init)
    var backend: DomainID? = own
    if path.hasPrefix("/local/domain/"), parts.count > 4 {
      backend = Self.domain(parts[3])
      parts.removeFirst(4)
    }
    guard let backend, parts.count == 4, parts[0] == "backend", !parts[1].isEmpty,
      let frontend = Self.domain(parts[2]), let device = VirtualDevice(parts[3])
    else {
      throw XenError(
        .invalid,
        "\"\(path)\" is no backend's directory; those are /local/domain/0/backend/vbd/1/51728 and the like")
    }
    self.init(device: device, of: frontend, servedBy: backend, kind: parts[1])
  }

  private static func domain(_ text: String) -> DomainID? {
    guard let number = try? Decimal.parse(text, in: 0...UInt64(DomainID.firstReserved.rawValue - 1)) else {
      return nil
    }
    return DomainID(UInt16(number))
  }

  /// The backend's directory.
  public var backendPath: String {
    "/local/domain/\(backend)/backend/\(kind)/\(frontend)/\(device.number)"
  }
  /// The frontend's directory.
  public var frontendPath: String { "/local/domain/\(frontend)/device/vbd/\(device.number)" }

  /// How a device comes to have its nodes.
  public enum Origin: Sendable {
    /// They were written just now.
    case created
    /// They were there: a toolstack's, or left by a backend that died.
    case found
  }

  /// Writes both directories unless they are there, in one transaction.
  ///
  /// - Parameters:
  ///   - store: of a domain that may write both, such as domain 0.
  ///   - parameters: what is served, for people who look.
  ///   - readOnly: whether writes are refused.
  /// - Throws: `.invalid` when the frontend has the device from another backend, `.notFound` without its domain,
  ///   `.denied` when this domain may not write there.
  public func create(
    in store: any XenStore, parameters: String, readOnly: Bool
  ) throws(XenError) -> Origin {
    do throws(XenError) {
      return try store.transaction { (transaction) throws(XenError) in
        let attached = try transaction.read("\(frontendPath)/\(Key.backend)")
        if let attached, attached != backendPath {
          throw XenError(
            .invalid,
            "domain \(frontend) has a device \(device) already, served from \(attached): detach it, or name that path"
          )
        }
        if attached != nil, try transaction.read("\(backendPath)/\(Key.frontend)") == frontendPath {
          return .found
        }
        if frontend != backend, try transaction.list("/local/domain/\(frontend)") == nil {
          throw XenError(.notFound, "there is no domain \(frontend)")
        }
        try write(
          backendNodes(parameters, readOnly), at: backendPath, owner: backend, reader: frontend, transaction)
        try write(frontendNodes, at: frontendPath, owner: frontend, reader: backend, transaction)
        return .created
      }
    } catch {
      guard error.code == .denied else { throw error }
      throw XenError(
        .denied,
        "domain \(backend) may not create the device \(device) of domain \(frontend): let the toolstack do it, and "
          + "give this backend's path (\(error))", errno: error.errno)
    }
  }

  /// Removes both directories.
  public func remove(from store: any XenStore) throws(XenError) {
    try store.transaction { (transaction) throws(XenError) in
      try transaction.remove(backendPath)
      // Not one that has another backend meanwhile.
      if try transaction.read("\(frontendPath)/\(Key.backend)") == backendPath {
        try transaction.remove(frontendPath)
      }
    }
  }

  private var frontendNodes: [(String, String)] {
    [
      (Key.backend, backendPath), (Key.backendID, "\(backend)"), (Key.virtualDevice, "\(device.number)"),
      (Key.deviceType, "disk"), (Key.trusted, "1"), (Key.state, "\(XenbusState.initialising.rawValue)"),
    ]
  }

  private func backendNodes(_ parameters: String, _ readOnly: Bool) -> [(String, String)] {
    [
      (Key.frontend, frontendPath), (Key.frontendID, "\(frontend)"), (Key.online, "1"), ("removable", "0"),
      ("bootable", "0"), ("dev", device.name ?? "\(device.number)"), ("type", "xbd-user"),
      (Key.mode, readOnly ? "r" : "w"), (Key.deviceType, "disk"), (Key.discardEnable, "1"),
      (Key.params, parameters), ("hotplug-status", "connected"),
      (Key.state, "\(XenbusState.initialising.rawValue)"),
    ]
  }

  /// Writes one directory: its owner may do everything, the other end may read.
  private func write(
    _ nodes: [(String, String)], at path: String, owner: DomainID, reader: DomainID,
    _ transaction: any XenStoreOperations
  ) throws(XenError) {
    try transaction.remove(path)
    try transaction.makeDirectory(path)
    try transaction.setPermissions(
      path,
      [
        XenStorePermission(domain: owner, read: false, write: false),
        XenStorePermission(domain: reader, read: true, write: false),
      ])
    for (key, value) in nodes { try transaction.write("\(path)/\(key)", value) }
  }
}
