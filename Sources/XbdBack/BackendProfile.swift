// SPDX-License-Identifier: Apache-2.0
//
// Known backends as configurations: what each offers, when it says so, what it refuses and how it answers. docs/
// backends.md has the table of quirks with the profile that shows each and the test that meets it. The numbers "Qn"
// are those of that table.

internal import Blkif

/// A backend that is known for its ways.
///
/// How fast it is, and what it does with its disk, is the reference backend's own business; only what a frontend can
/// see over xenstore and the ring is the other's.
public enum BackendProfile: String, CaseIterable, Sendable {
  /// Linux blkback since 4.4 as it is in 6.x: everything that blkif.h has.
  case linux6 = "linux-6.x"
  /// Linux blkback 3.11 to 4.3, still under many domains of XenServer: one ring of one page, and a disk below it that
  /// turns out to have neither flushes nor discards.
  case linux3 = "linux-3.x"
  /// QEMU's xen-block.
  case qemu
  /// blktap's tapdisk and tapback (XenServer, XCP-ng).
  case tapdisk
  /// FreeBSD's blkback.
  case freebsd
  /// NetBSD's xbdback.
  case netbsd
  /// MirageOS's mirage-block-xen.
  case mirage
  /// The least that blkif.h allows: a size, and reads and writes of 11 segments on a ring of one page.
  case minimal

  /// The directory under backend/ that a toolstack uses for it.
  public var kind: String {
    switch self {
    case .qemu: "qdisk"
    case .tapdisk: "vbd3"
    default: "vbd"
    }
  }
}

extension BackendConfiguration {
  /// What a known backend offers and how it behaves; everything in it can be changed afterwards.
  public static func profile(_ profile: BackendProfile) -> BackendConfiguration {
    switch profile {
    case .linux6: linux6
    case .linux3: linux3
    case .qemu: qemu
    case .tapdisk: tapdisk
    case .freebsd: freebsd
    case .netbsd: netbsd
    case .mirage: mirage
    case .minimal: minimal
    }
  }

  /// Linux drivers/block/xen-blkback: transport with InitWait, the rest with Connected (Q4, Q7); x86_32 when `protocol`
  /// is missing (Q1), `ring-ref0` for an order of 0 (Q2); a bad request costs a millisecond (Q20), a bad producer
  /// index halts the ring without a word (Q22), a grant that is in flight twice is mapped twice (Q13).
  private static var linux6: Self {
    var linux = Self()
    linux.abiWhenMissing = .x86_32
    linux.singlePage = .numbered
    linux.refusalMicroseconds = 1000
    linux.mapsAgainWhatIsInUse = true
    linux.haltsSilently = true
    linux.withdrawsFeatures = true
    return linux
  }

  /// The same before multi-page rings and queues; flushes and discards fail when they are used although they were
  /// offered, and their nodes become 0 then (Q10).
  private static var linux3: Self {
    var linux = linux6
    linux.maxRingPageOrder = 0
    linux.maxQueues = 1
    linux.maxIndirectSegments = 32
    linux.readsRingPageOrder = false
    linux.flush = .advertisedOnly
    linux.discard = .advertisedOnly
    return linux
  }

  /// QEMU hw/block/xen-block.c and dataplane/xen-block.c: everything with InitWait but the size's repetitions, flush
  /// only (Q8), discard with a granularity of 0 (Q15), grant copy, sectors of 512 bytes (Q16), ERROR for what it does
  /// not know (Q10), native for any `protocol`.
  private static var qemu: Self {
    var qemu = Self()
    qemu.dataPath = .grantCopy
    qemu.maxIndirectSegments = 0
    qemu.maxQueues = 1
    qemu.singlePage = .numbered
    qemu.unknownABIIsNative = true
    qemu.barrier = .off
    qemu.discardGranularity = 0
    qemu.only512 = true
    qemu.publishesZeroes = false
    qemu.unknownOperation = .error
    qemu.sizeChange = .inTwoSteps
    qemu.removesNodes = true
    qemu.publication = Publication(
      initWait: [.ringPageOrder, .flush, .discard, .info, .sectorSize, .size], connected: [])
    return qemu
  }

  /// blktap drivers/tapback, drivers/tapdisk-vbd: barriers and no flush (Q8), which stop the ring until they are done;
  /// x86_32 when `protocol` is missing (Q1); rings of up to 8 pages, one of them always in `ring-ref` (Q2).
  private static var tapdisk: Self {
    var tapdisk = Self()
    tapdisk.dataPath = .grantCopy
    tapdisk.maxIndirectSegments = 0
    tapdisk.maxQueues = 1
    tapdisk.maxRingPageOrder = 3
    tapdisk.abiWhenMissing = .x86_32
    tapdisk.singlePage = .plain
    tapdisk.flush = .off
    tapdisk.discard = .off
    tapdisk.publishesZeroes = false
    tapdisk.sizeChange = .silent
    tapdisk.publication = Publication(
      initWait: [.ringPageOrder], connected: [.barrier, .size, .sectorSize, .info])
    return tapdisk
  }

  /// FreeBSD sys/dev/xen/blkback: both spellings of the ring's size, features with InitWait and sizes with Connected
  /// (Q4), sectors counted in `sector-size` (Q16), ERROR for what it does not know (Q10).
  private static var freebsd: Self {
    var freebsd = Self()
    freebsd.persistentGrants = false
    freebsd.maxIndirectSegments = 0
    freebsd.maxQueues = 1
    freebsd.singlePage = .plain
    freebsd.discard = .off
    freebsd.countsInSectorSize = true
    freebsd.publishesZeroes = false
    freebsd.unknownOperation = .error
    freebsd.sizeChange = .silent
    freebsd.publication = Publication(
      initWait: [.ringPageOrder, .ringPages, .flush, .barrier], connected: [.size, .info, .sectorSize])
    return freebsd
  }

  /// NetBSD sys/arch/xen/xen/xbdback_xenbus.c: Connected before there is a frontend (Q5), the ring attached later
  /// with a notification and no change of state (Q5b, Q19); flush only (Q8); 16 indirect segments on one page (Q14);
  /// EOPNOTSUPP for a write of a read-only disk (Q17); no second connection (Q6); one bounce buffer for requests that
  /// are not contiguous (Q12); 32 requests that are lost one by one as they are refused (Q25).
  private static var netbsd: Self {
    var netbsd = Self()
    netbsd.persistentGrants = false
    netbsd.maxIndirectSegments = 16
    netbsd.maxIndirectPages = 1
    netbsd.maxRingPageOrder = 0
    netbsd.maxQueues = 1
    netbsd.readsRingPageOrder = false
    netbsd.barrier = .off
    netbsd.discard = .off
    netbsd.only512 = true
    netbsd.publishesZeroes = false
    netbsd.stateOrder = .connectsAtOnce
    netbsd.reconnects = false
    netbsd.notifiesWhenAttached = true
    netbsd.unknownOperation = .error
    netbsd.unevenMicroseconds = 500
    netbsd.requestsToLose = 32
    netbsd.readOnlyWrite = .notSupported
    netbsd.sizeChange = .silent
    netbsd.publication = Publication(connected: [.indirect, .flush, .size, .info, .sectorSize])
    return netbsd
  }

  /// mirage-block-xen lib/back: stays at Initialising until the frontend has published (Q5); no flush, barrier or
  /// discard (Q8); 256 indirect segments on one page (Q14); no guess about a missing `protocol` (Q1); responses only
  /// for whole batches, none at all for what it does not understand (Q21); sectors counted in `sector-size` (Q16).
  private static var mirage: Self {
    var mirage = Self()
    mirage.persistentGrants = false
    mirage.maxIndirectSegments = 256
    mirage.maxIndirectPages = 1
    mirage.maxRingPageOrder = 0
    mirage.maxQueues = 1
    mirage.abiWhenMissing = nil
    mirage.abis = [.x86_64, .x86_32]
    mirage.readsRingPageOrder = false
    mirage.flush = .off
    mirage.barrier = .off
    mirage.discard = .off
    mirage.countsInSectorSize = true
    mirage.publishesZeroes = false
    mirage.publishInterval = 0
    mirage.stateOrder = .staysInitialising
    mirage.reconnects = false
    mirage.unknownOperation = .unanswered
    mirage.malformedRequest = .unanswered
    mirage.readOnlyWrite = .unanswered
    mirage.answersWholeBatches = true
    mirage.sizeChange = .silent
    mirage.publication = Publication(initialising: [.indirect, .size, .sectorSize, .info])
    return mirage
  }

  /// Only what blkif.h has no default for.
  private static var minimal: Self {
    var minimal = Self()
    minimal.persistentGrants = false
    minimal.maxIndirectSegments = 0
    minimal.maxRingPageOrder = 0
    minimal.maxQueues = 1
    minimal.readsRingPageOrder = false
    minimal.flush = .off
    minimal.barrier = .off
    minimal.discard = .off
    minimal.only512 = true
    minimal.publishesZeroes = false
    minimal.sizeChange = .silent
    minimal.publication = Publication(connected: [.size])
    return minimal
  }
}
