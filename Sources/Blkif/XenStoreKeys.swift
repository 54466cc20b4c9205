// SPDX-License-Identifier: Apache-2.0
//
// Every xenstore key of a virtual block device, spelled once. Values, defaults and meanings: blkif.h,
// "Feature and Parameter Negotiation".

/// The names of nodes in a block device's two xenstore directories.
public enum Key {
  // Both ends.
  /// Where this end stands, a XenbusState.
  public static let state = "state"

  // The frontend's directory, written by the toolstack.
  /// The path of the backend's directory.
  public static let backend = "backend"
  /// The backend's domain.
  public static let backendID = "backend-id"
  /// The virtual device number (xen-vbd-interface(7)).
  public static let virtualDevice = "virtual-device"
  /// "disk" or "cdrom".
  public static let deviceType = "device-type"
  /// 0 when the frontend should distrust the backend; default 1 (XSA-403).
  public static let trusted = "trusted"

  // The frontend's directory, written by the frontend.
  /// The ring's only page.
  public static let ringRef = "ring-ref"
  /// One page of a ring of several.
  public static func ringRef(_ page: Int) -> String { "ring-ref\(page)" }
  /// log2 of the ring's pages; absent for one page.
  public static let ringPageOrder = "ring-page-order"
  /// The ring's pages; deprecated twin of `ring-page-order`.
  public static let numRingPages = "num-ring-pages"
  /// The port that the backend binds to.
  public static let eventChannel = "event-channel"
  /// The ABI; absent means different things to different backends, so it is always written.
  public static let `protocol` = "protocol"
  /// How many queues are used; absent for one.
  public static let multiQueueNumQueues = "multi-queue-num-queues"
  /// The directory of one of several queues.
  public static func queue(_ index: Int) -> String { "queue-\(index)" }
  /// From the frontend: it reuses its grants.
  ///
  /// From the backend: it keeps them mapped.
  public static let featurePersistent = "feature-persistent"

  // The backend's directory.
  /// The path of the frontend's directory.
  public static let frontend = "frontend"
  /// The frontend's domain.
  public static let frontendID = "frontend-id"
  /// 0 when the toolstack wants the device gone after it is closed.
  public static let online = "online"
  /// "r" or "w", private to the backend.
  public static let mode = "mode"
  /// What the backend serves, private to it.
  public static let params = "params"
  /// Whether the backend may offer discard; default 1.
  public static let discardEnable = "discard-enable"
  /// WRITE_BARRIER is accepted.
  public static let featureBarrier = "feature-barrier"
  /// FLUSH_DISKCACHE is accepted.
  public static let featureFlushCache = "feature-flush-cache"
  /// DISCARD is accepted.
  public static let featureDiscard = "feature-discard"
  /// The offset of the first discardable extent, in bytes.
  public static let discardAlignment = "discard-alignment"
  /// The size of a discardable extent, in bytes.
  public static let discardGranularity = "discard-granularity"
  /// The SECURE flag of a discard is honoured.
  public static let discardSecure = "discard-secure"
  /// Segments that an indirect request may have; absent when INDIRECT is not accepted.
  public static let featureMaxIndirectSegments = "feature-max-indirect-segments"
  /// log2 of the largest ring in pages; default 0.
  public static let maxRingPageOrder = "max-ring-page-order"
  /// The largest ring in pages; deprecated twin of `max-ring-page-order`.
  public static let maxRingPages = "max-ring-pages"
  /// How many queues the backend serves; default 1.
  public static let multiQueueMaxQueues = "multi-queue-max-queues"
  /// The size of the device, in 512-byte units.
  public static let sectors = "sectors"
  /// The logical sector, in bytes; only for length and alignment.
  public static let sectorSize = "sector-size"
  /// The physical sector, in bytes, a multiple of the logical one.
  public static let physicalSectorSize = "physical-sector-size"
  /// VDISK_* bits.
  public static let info = "info"
}

/// The bits of the `info` node (blkif.h: VDISK_*).
public struct DiskInfo: OptionSet, Sendable {
  /// The bits.
  public let rawValue: UInt32
  /// Bits as read.
  public init(rawValue: UInt32) { self.rawValue = rawValue }
  /// A CD-ROM (VDISK_CDROM).
  public static let cdrom = DiskInfo(rawValue: 1)
  /// The medium can be taken out (VDISK_REMOVABLE).
  public static let removable = DiskInfo(rawValue: 2)
  /// Writes are refused (VDISK_READONLY).
  public static let readOnly = DiskInfo(rawValue: 4)
}
