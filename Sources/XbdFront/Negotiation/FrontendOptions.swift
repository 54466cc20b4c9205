// SPDX-License-Identifier: Apache-2.0

public import Blkif

/// What a user wants of a frontend; negotiation brings it down to what the backend has.
public struct FrontendOptions: Sendable {
  /// log2 of the ring's pages that is asked for, 0 to 4.
  public var ringPageOrder = 2
  /// How many queues are asked for, 1 or more; each has a thread.
  public var queueCount = 1
  /// Segments of the largest request that is asked for, 1 to 4,096; 11 or fewer means no indirect requests.
  public var maxSegments = 256
  /// Whether to tell the backend that grants are reused, so that it may keep them mapped.
  public var persistent = true
  /// How payloads travel.
  public var copy = CopyMode.direct
  /// How pages come to be shared.
  public var grants = GrantMode.persistent
  /// The most pages that all queues together may share besides their rings.
  ///
  /// gntalloc gives 1,024 to the whole domain until its limit is raised.
  public var poolPages = 960
  /// The layout of requests; anything but the native one is for testing backends.
  public var abi = ABI.native
  /// Overrides the toolstack's `trusted` node when set.
  public var trusted: Bool?
  /// Use FLUSH_DISKCACHE when the backend has it; off to see what a device is like without.
  public var useFlush = true
  /// Use empty barriers to flush, when the backend has them and nothing better is to be used.
  public var useBarrier = true
  /// Offer discard when the backend has it.
  public var useDiscard = true
  /// Ask for every discard to be a secure one; without a backend that can, discard is not offered.
  public var secureDiscard = false
  /// What the backend counts `sectors` and the sectors of requests in, where its sectors are larger than 512 bytes.
  public var sectorsUnit = SectorsUnit.bytes512
  /// Whether to wait for another backend when this one goes, and give it what was in flight.
  ///
  /// Writes then pass through private memory, whatever `copy` says: the pages that a lost backend could write are not
  /// given to the next one.
  public var reconnects = false
  /// How long requests may wait for another backend.
  public var reconnectTimeout = Duration.seconds(60)
  /// How long to wait between attempts to connect again.
  public var reconnectPause = Duration.seconds(1)
  /// How long the backend may take for each step of the handshake.
  public var handshakeTimeout = Duration.seconds(30)
  /// How long the backend may stay at Initialising before the frontend goes ahead with default parameters, as
  /// blkif.h allows; some backends wait for it.
  public var initialisingGrace = Duration.seconds(2)
  /// How long the backend may leave a request unanswered before the device is given up; nil waits for ever.
  ///
  /// Only where the owner of a queue keeps its time (`BlockQueue.keepTime`).
  public var requestTimeout: Duration?
  /// How long closing may wait for requests in flight and for the backend's states, all of it together.
  public var closeTimeout = Duration.seconds(10)

  /// The defaults.
  public init() {}
}

/// What a backend counts sectors in.
public enum SectorsUnit: String, Sendable, CaseIterable {
  /// 512 bytes, as blkif.h says since 2024.
  case bytes512 = "512"
  /// The logical sector, as FreeBSD's backend does: `sectors`, and where requests begin. Segments stay in 512 bytes.
  case sectorSize = "sector-size"
}

/// What a device is connected with: the options brought down to the backend's features.
public struct TransportParameters: Equatable, Sendable {
  /// log2 of each ring's pages.
  public var ringPageOrder: Int
  /// How many queues.
  public var queueCount: Int
  /// Segments of the largest request.
  public var maxSegments: Int
  /// The most pages of each queue's pool.
  public var poolPagesPerQueue: Int

  /// Brings options down to what a backend serves.
  ///
  /// The pool is never so small that a request could not find its pages; rather, requests are smaller.
  ///
  /// - Parameter queues: how many there are, where that is settled already.
  public init(_ options: FrontendOptions, _ features: TransportFeatures, queueCount queues: Int? = nil) {
    ringPageOrder = max(0, min(options.ringPageOrder, features.maxRingPageOrder, BlkIf.maxRingPageOrder))
    queueCount = queues ?? max(1, min(options.queueCount, features.maxQueues))
    poolPagesPerQueue = max(1, options.poolPages / queueCount)
    let wanted = max(1, min(options.maxSegments, BlkIf.maxIndirectSegments))
    // A backend may offer fewer segments in indirect requests than fit into a direct one: then direct ones do.
    let offered =
      features.maxIndirectSegments > BlkIf.maxDirectSegments
      ? features.maxIndirectSegments : BlkIf.maxDirectSegments
    maxSegments = max(1, min(wanted, offered, max(1, poolPagesPerQueue / 3)))
  }
}
