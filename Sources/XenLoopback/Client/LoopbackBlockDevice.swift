// SPDX-License-Identifier: Apache-2.0
//
// A block device as the toolstack writes it into xenstore (libxl: device_disk_add).

public import Xen

/// A block device to attach: what libxl's device_disk_add writes for it (see docs/loopback.md).
public struct LoopbackBlockDevice: Sendable {
  /// The device number, such as 51728 for xvdb.
  public var virtualDevice: UInt32
  /// The domain that uses the device.
  public var frontend: DomainID
  /// The domain that provides it.
  public var backend: DomainID
  /// The kind of backend, which is a directory in xenstore: "vbd", "qdisk", "vbd3" and so on.
  public var kind: String
  /// The device's name for people, such as "xvdb".
  public var name: String
  /// What the backend opens; its form is the backend's own business ("raw:/path" for QEMU).
  public var parameters: String
  /// The backend's kind of storage: "file", "phy" and so on; "qdisk" for QEMU.
  public var type: String
  /// Whether the device may not be written.
  public var isReadOnly: Bool
  /// Whether the backend may offer discard.
  public var allowsDiscard: Bool
  /// Whether the frontend should trust the backend (XSA-403).
  public var isTrusted: Bool
  /// More nodes for the backend's directory, such as switches of its own.
  public var backendNodes: [String: String]

  /// A writable, trusted disk of a kind.
  public init(
    virtualDevice: UInt32, name: String, frontend: DomainID, backend: DomainID = .dom0, kind: String = "vbd",
    parameters: String = "", type: String = "file"
  ) {
    self.virtualDevice = virtualDevice
    self.name = name
    self.frontend = frontend
    self.backend = backend
    self.kind = kind
    self.parameters = parameters
    self.type = type
    isReadOnly = false
    allowsDiscard = true
    isTrusted = true
    backendNodes = [:]
  }

  /// The frontend's directory in xenstore.
  public var frontendPath: String { "/local/domain/\(frontend)/device/vbd/\(virtualDevice)" }
  /// The backend's directory in xenstore.
  public var backendPath: String { "/local/domain/\(backend)/backend/\(kind)/\(frontend)/\(virtualDevice)" }
}

extension LoopbackBlockDevice {
  /// What the toolstack itself writes into the frontend's directory, but for its state.
  static let frontendNodes: Set<String> = [
    "backend", "backend-id", "virtual-device", "device-type", "trusted",
  ]
  /// Whether a node of the backend's directory is the backend's own, and not the toolstack's.
  static func isPublished(_ name: String) -> Bool {
    let prefixes = ["feature-", "max-ring-", "multi-queue-", "sector", "physical-sector-"]
    return prefixes.contains { name.hasPrefix($0) } || name == "info"
      || name.hasPrefix("discard-") && name != "discard-enable"
  }

  /// Makes the frontend's directory, in state 1.
  func writeFrontend(_ operations: any XenStoreOperations) throws(XenError) {
    try write(
      operations, frontendPath, owner: frontend, reader: backend,
      [
        ("backend", backendPath), ("backend-id", "\(backend)"), ("virtual-device", "\(virtualDevice)"),
        ("device-type", "disk"), ("trusted", isTrusted ? "1" : "0"), ("state", "1"),
      ])
  }

  /// Makes the backend's directory, in state 1.
  func writeBackend(_ operations: any XenStoreOperations) throws(XenError) {
    var nodes: [(String, String)] = [
      ("frontend", frontendPath), ("frontend-id", "\(frontend)"), ("online", "1"), ("removable", "0"),
      ("bootable", "1"), ("dev", name), ("type", type), ("mode", isReadOnly ? "r" : "w"),
      ("device-type", "disk"), ("discard-enable", allowsDiscard ? "1" : "0"), ("params", parameters),
      // libxl writes it since 4.17; the lab's Xen showed that it was missing here.
      ("specification", "xen"),
    ]
    nodes.append(contentsOf: backendNodes.sorted { $0.key < $1.key }.map { ($0.key, $0.value) })
    nodes.append(("state", "1"))
    try write(operations, backendPath, owner: backend, reader: frontend, nodes)
  }

  private func write(
    _ operations: any XenStoreOperations, _ path: String, owner: DomainID, reader: DomainID,
    _ nodes: [(String, String)]
  ) throws(XenError) {
    try operations.remove(path)
    try operations.makeDirectory(path)
    try operations.setPermissions(
      path,
      [
        XenStorePermission(domain: owner, read: false, write: false),
        XenStorePermission(domain: reader, read: true, write: false),
      ])
    for (name, value) in nodes { try operations.write("\(path)/\(name)", value) }
  }
}
