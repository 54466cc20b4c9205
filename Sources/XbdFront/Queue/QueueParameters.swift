// SPDX-License-Identifier: Apache-2.0

public import Blkif
public import Xen

/// How durable writes are asked for, in the order of preference (blkif.h: feature-flush-cache, feature-barrier).
public enum FlushMethod: Sendable, Equatable {
  /// FLUSH_DISKCACHE.
  case flushCache
  /// An empty WRITE_BARRIER.
  case barrier
  /// The backend has neither; the device says so to its users.
  case none
}

/// What a discard may cover (blkif.h: discard-granularity, discard-alignment, discard-secure).
public struct DiscardLimits: Sendable, Equatable {
  /// The size of an extent, in bytes, a multiple of 512.
  public var granularity: UInt64
  /// Where the first extent begins, in bytes, less than the granularity.
  public var alignment: UInt64
  /// SECURE is honoured.
  public var secure: Bool
}

/// What a queue was connected with: everything negotiated that the data path needs.
public struct QueueParameters: Sendable {
  /// Who may map the pages.
  public var backend: DomainID
  /// What goes into each request's `handle`.
  public var handle: UInt16
  /// The layout of requests.
  public var abi: ABI
  /// Segments of the largest request; more than 11 means indirect ones.
  public var maxSegments: Int
  /// The device's size in 512-byte units.
  public var sectorCount: UInt64
  /// The logical sector in bytes, a power of two of at least 512.
  public var sectorSize: Int
  /// Writes are refused.
  public var isReadOnly: Bool
  /// How to flush.
  public var flush: FlushMethod
  /// Whether `.barrier` is there to fall back on when `.flushCache` stops working.
  public var hasBarrier: Bool
  /// How to discard; nil when the backend does not.
  public var discard: DiscardLimits?
  /// Whether discards are asked to be secure ones.
  public var secureDiscard = false
  /// Whether the backend may see what earlier requests left in a page (`trusted`, XSA-403).
  public var trusted: Bool
  /// How payloads travel.
  public var copy: CopyMode
  /// How pages come to be shared.
  public var grants: GrantMode
  /// The most pages the queue's pool may have.
  public var poolPages: Int
  /// Whether what is written is kept in private memory until it is answered, because another backend may have to be
  /// given it (`FrontendOptions.reconnects`).
  public var keepsWrites = false
  /// log2 of what the wire counts sectors in: 9, except for backends that count in the logical sector.
  public var sectorShift: UInt64 = 9
  /// The longest a request may stay unanswered; nil for as long as it likes.
  public var requestTimeout: Duration?
}

extension QueueParameters {
  /// What a queue uses of what was negotiated.
  init(
    _ location: DeviceLocation, _ options: FrontendOptions, _ transport: TransportParameters,
    _ features: DeviceFeatures, trusted: Bool
  ) {
    backend = location.backendDomain
    handle = location.device.handle
    abi = options.abi
    maxSegments = transport.maxSegments
    sectorCount = features.sectorCount
    sectorSize = features.sectorSize
    isReadOnly = features.info.contains(.readOnly) || features.info.contains(.cdrom)
    hasBarrier = options.useBarrier && features.barrier
    flush = features.flush(options)
    discard = features.discard(options)
    secureDiscard = options.secureDiscard
    self.trusted = trusted
    copy = options.copy
    grants = options.grants
    poolPages = transport.poolPagesPerQueue
    keepsWrites = options.reconnects
    sectorShift = options.sectorsUnit == .sectorSize ? UInt64(sectorSize.trailingZeroBitCount) : 9
    requestTimeout = options.requestTimeout
  }
}
