// SPDX-License-Identifier: Apache-2.0
//
// Everything that a backend offers, limits or pretends, as data. The defaults are Linux blkback's.

public import Blkif

/// What one device's backend offers and how it works.
public struct BackendConfiguration: Sendable {
  /// How a kind of request is treated.
  public enum Support: Sendable {
    /// Offered and done.
    case on
    /// Not offered, and answered EOPNOTSUPP.
    case off
    /// Offered, and answered EOPNOTSUPP all the same, as a backend may at any time (blkif.h: feature-barrier).
    case advertisedOnly
  }
  /// How a request's pages are reached.
  public enum DataPath: Sendable {
    /// Mapped; kept so when both ends have `feature-persistent`.
    case map
    /// Copied by the hypervisor, as QEMU does; nothing is kept.
    case grantCopy
  }
  /// What becomes of a request that a backend does not do.
  public enum Refusal: Sendable {
    /// ERROR.
    case error
    /// EOPNOTSUPP.
    case notSupported
    /// Nothing: it is never answered.
    case unanswered
  }
  /// Through which states a backend goes to Connected.
  public enum StateOrder: Sendable {
    /// InitWait, then Connected once the frontend has published its ring.
    case waits
    /// Stays at Initialising until the frontend has published its ring.
    case staysInitialising
    /// InitWait and Connected at once, before there is a frontend; the ring is attached later, and nothing says so.
    case connectsAtOnce
  }
  /// Where a ring of one page is looked for when the frontend has written `ring-page-order` = 0.
  public enum SinglePage: Sendable {
    /// In `ring-ref` or `ring-ref0`, whichever there is.
    case either
    /// In `ring-ref0` only, as for several pages.
    case numbered
    /// In `ring-ref` only.
    case plain
  }
  /// How a new size is made known.
  public enum SizeChange: Sendable {
    /// `sectors` and the state again, in one transaction.
    case atOnce
    /// `sectors`, then the state again: the second is what counts.
    case inTwoSteps
    /// Not at all.
    case silent
  }
  /// Who runs the queues.
  public enum Execution: Sendable {
    /// Each queue has a thread of its own, which sleeps on its event channel.
    case ownThread
    /// Whoever owns the frontend's queue calls `ColocatedQueue.run`.
    case colocated
  }

  // How it runs.
  /// Who runs the queues.
  public var execution: Execution = .ownThread
  /// Own thread: for how long an empty ring is looked at again before sleeping, in nanoseconds.
  public var pollNanoseconds: UInt64 = 0
  /// After how many responses the frontend is shown them, rather than only when the ring is empty; 0 never.
  public var publishInterval: Int = 8

  /// How long a frontend that is found connected to a backend that died may take to begin again, in milliseconds;
  /// then it is asked to close.
  public var abandonedMilliseconds: UInt64 = 10_000

  // Grants.
  /// How a request's pages are reached.
  public var dataPath: DataPath = .map
  /// Offer to keep grants mapped (feature-persistent); without effect with `grantCopy`.
  public var persistentGrants = true
  /// Grants that one queue keeps mapped, at most; beyond it they are mapped for a request (max_persistent_grants).
  public var maxPersistentGrants = 1056
  /// How often a queue looks for grants to let go of, in milliseconds (LRU_INTERVAL).
  public var purgeIntervalMilliseconds: UInt32 = 100
  /// Per cent of the limit that are let go of when it was not enough (LRU_PERCENT_CLEAN).
  public var purgePercent = 5
  /// After how many seconds without use a grant is let go of (persistent_grant_unused_seconds); 0 never.
  public var persistentUnusedSeconds: UInt32 = 60
  /// Map the pages of one request with one call, rather than each by itself.
  public var batchMapping = true

  // The ring.
  /// Segments of an indirect request, 0 to 4,096; 0 does without indirect requests.
  public var maxIndirectSegments = 256
  /// log2 of the ring's pages, at most; 0 to 4.
  public var maxRingPageOrder = 4
  /// Queues, at most.
  public var maxQueues = 4
  /// The layout when the frontend has written no `protocol`; nil refuses such a frontend.
  public var abiWhenMissing: ABI? = .native
  /// The layouts that are understood.
  public var abis: Set<ABI> = Set(ABI.allCases)
  /// Take a `protocol` that is none of them for the native one, rather than refuse the frontend.
  public var unknownABIIsNative = false
  /// Where the page of a ring of order 0 is looked for.
  public var singlePage: SinglePage = .either
  /// Read `ring-page-order` and `num-ring-pages`; a backend of single pages may not know that they exist.
  public var readsRingPageOrder = true
  /// Pages of segments that are read of an indirect request, at most; requests with more are refused.
  public var maxIndirectPages = 8

  // The handshake.
  /// Which nodes are published, and when.
  public var publication: Publication = .split
  /// Write 0 for a feature that is off, rather than no node.
  public var publishesZeroes = true
  /// Through which states it goes.
  public var stateOrder: StateOrder = .waits
  /// Begin again with a frontend that comes back after Closed; otherwise the device is over.
  public var reconnects = true
  /// Notify the frontend when the ring is attached, although there is no response.
  public var notifiesWhenAttached = false
  /// Say nothing when the frontend breaks the ring: no state, no error node.
  public var haltsSilently = false
  /// How a new size is made known.
  public var sizeChange: SizeChange = .atOnce
  /// Remove the nodes of both ends when the toolstack has taken the device away.
  public var removesNodes = false

  // Answers.
  /// The answer to an operation that is unknown, or known and not offered.
  public var unknownOperation: Refusal = .notSupported
  /// The answer to a request that makes no sense.
  public var malformedRequest: Refusal = .error
  /// The answer to a write of a disk that may not be written.
  public var readOnlyWrite: Refusal = .error
  /// Map a page once more, for the one request, that is kept mapped and in use by another request already.
  public var mapsAgainWhatIsInUse = false
  /// How much longer a request takes that has anything but whole pages between its first and last segment, in
  /// microseconds; the ring waits meanwhile.
  public var unevenMicroseconds: UInt32 = 0
  /// How many refused requests it takes until no request is done or answered any more; 0 for any number.
  ///
  /// Each of them is lost to the backend's free list.
  public var requestsToLose = 0
  /// How long a request that makes no sense is slept over, in microseconds; the ring waits meanwhile.
  public var refusalMicroseconds: UInt32 = 0
  /// Show responses only when all requests that were taken together are done, and take none meanwhile.
  public var answersWholeBatches = false
  /// Answer an indirect request with operation 6, as blkif.h can be read, instead of the operation inside.
  public var echoIndirectOperation = false

  /// What goes wrong on purpose.
  public var faults = FaultPlan()

  // What the disk can do.
  /// FLUSH_DISKCACHE.
  public var flush: Support = .on
  /// WRITE_BARRIER.
  public var barrier: Support = .on
  /// DISCARD; off by itself when the storage cannot.
  public var discard: Support = .on
  /// Write 0 into the node of a feature that was answered EOPNOTSUPP (`Support.advertisedOnly`).
  public var withdrawsFeatures = false
  /// `discard-granularity` in bytes, 0 for "don't know"; nil takes the storage's.
  public var discardGranularity: Int?
  /// `discard-alignment` in bytes.
  public var discardAlignment = 0
  /// Offer secure discards; off by itself when the storage cannot.
  public var secureDiscard = false
  /// Refuse writes; on by itself when the storage is read-only.
  public var readOnly = false
  /// Say that it is a CD-ROM.
  public var cdrom = false
  /// Say that the medium can be taken out.
  public var removable = false
  /// Count `sectors` and a request's sector in units of `sectorSize`, as some did before blkif.h said 512 (2024).
  public var countsInSectorSize = false
  /// Serve only sectors of 512 bytes.
  public var only512 = false
  /// The logical sector in bytes, 512 or 4,096; only lengths and alignments follow it, the wire stays at 512.
  public var sectorSize = 512
  /// The physical sector in bytes, a multiple of `sectorSize`; nil takes `sectorSize`.
  public var physicalSectorSize: Int?

  /// As capable as Linux blkback.
  public init() {}

  /// What makes no sense in it.
  ///
  /// - Returns: a sentence; nil when everything does.
  public func complaint(about storage: any Storage) -> String? {
    let physical = physicalSectorSize ?? sectorSize
    switch true {
    case ![512, 4096].contains(sectorSize):
      return "a logical sector has 512 or 4096 bytes, not \(sectorSize)"
    case physical < sectorSize || physical > 1 << 20 || physical.nonzeroBitCount != 1:
      return "a physical sector of \(physical) bytes is no power of two that is a multiple of \(sectorSize)"
    case storage.requiredAlignment > sectorSize:
      return "\(storage) needs sectors of \(storage.requiredAlignment) bytes; set the logical sector to that"
    case storage.byteCount % UInt64(physical) != 0:
      return "\(storage) has \(storage.byteCount) bytes, no whole number of \(physical)-byte sectors"
    case !(0...BlkIf.maxIndirectSegments).contains(maxIndirectSegments):
      return "an indirect request has up to \(BlkIf.maxIndirectSegments) segments, not \(maxIndirectSegments)"
    case !(0...BlkIf.maxRingPageOrder).contains(maxRingPageOrder):
      return "a ring's order is 0 to \(BlkIf.maxRingPageOrder), not \(maxRingPageOrder)"
    case !(1...256).contains(maxQueues):
      return "there are 1 to 256 queues, not \(maxQueues)"
    case !(0...1 << 20).contains(maxPersistentGrants):
      return "a queue keeps 0 to \(1 << 20) grants, not \(maxPersistentGrants)"
    case !(0...100).contains(purgePercent):
      return "\(purgePercent) is no percentage"
    case !(discardGranularity ?? 512).isMultiple(of: 512) || (discardGranularity ?? 0) < 0
      || discardAlignment < 0:
      return "a discard granularity is 0 or a multiple of 512 bytes, and an alignment not negative"
    case only512 && sectorSize != 512:
      return "this kind of backend has sectors of 512 bytes only, not \(sectorSize)"
    case !(1...BlkIf.maxIndirectPages).contains(maxIndirectPages):
      return
        "an indirect request has 1 to \(BlkIf.maxIndirectPages) pages of segments, not \(maxIndirectPages)"
    case publishInterval < 0:
      return "a publish interval is not negative"
    default:
      return nil
    }
  }
}
