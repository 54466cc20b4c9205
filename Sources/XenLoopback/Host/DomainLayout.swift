// SPDX-License-Identifier: Apache-2.0
//
// What a domain's tables look like in shared memory. Each domain has two files in memory: its tables, laid out
// below, and its pages, one after the other, grant reference n at byte n * 4096. Every process of the host maps
// the tables it needs and works on them with atomics, as domains and the hypervisor work on Xen's: no message is
// exchanged to map, unmap, copy or notify. Files are sparse and pages of them exist once touched.
//
//   page 0        header, then who shares how many pages
//   page 1        event-channel handles: how often their eventfd was written
//   page 2        maptrack frames: which process uses which
//   then          event-channel ports, 32 bytes each
//   then          grant entries, 32 bytes each
//   then          maptrack entries, 32 bytes each, 128 to a frame

internal import Platform

/// Sizes and offsets of a domain's tables.
///
/// Every count is a power of two: a number that came out of shared memory is masked to be one of the table's
/// (`DomainMemory`), and so leads nowhere else.
enum DomainLayout {
  /// A domain that cannot be (xen.h: DOMID_INVALID).
  static let nobody: UInt16 = 0x7FF4
  /// Grant references of a domain: 64 frames of version-1 entries, Xen's default gnttab_max_frames.
  static let grantCount = 32768
  /// The first reference given out; the ones below are reserved (grant_table.h: GNTTAB_NR_RESERVED_ENTRIES).
  static let firstGrant = 8
  /// Ports of a domain, as with Xen's 2-level event channels on 64 bits (event_channel.h).
  static let portCount = 4096
  static let handleCount = 256
  static let joinCount = 256
  static let frameCount = 256
  static let entriesPerFrame = 128
  static let maptrackCount = frameCount * entriesPerFrame

  static let magic: UInt32 = 0x7862_6C31

  static let joins = 2048
  static let handles = Page.size
  static let frames = 2 * Page.size
  static let ports = 3 * Page.size
  static let grants = ports + portCount * 32
  static let maptrack = grants + grantCount * 32
  static let byteCount = maptrack + maptrackCount * 32
  static let pageBytes = grantCount * Page.size
}

/// The header of a domain's tables.
struct DomainHeader {
  let record: SharedRecord
  var magic: SharedUInt32 { record.word32(0) }
  var domain: SharedUInt32 { record.word32(4) }
  /// Which incarnation of the domain this is; unique for the host.
  var serial: SharedUInt32 { record.word32(8) }
  /// 1 until the domain is destroyed.
  var alive: SharedUInt32 { record.word32(12) }
  /// gntalloc's limit and what counts against it.
  var pageLimit: SharedUInt32 { record.word32(16) }
  var pagesShared: SharedUInt32 { record.word32(20) }
  /// Where the search for a free grant begins.
  var grantHint: SharedUInt32 { record.word32(24) }
  /// One more than the highest grant ever used: nobody has to look further.
  var grantHighWater: SharedUInt32 { record.word32(28) }
  /// How many maptrack frames the domain may have in all.
  var frameLimit: SharedUInt32 { record.word32(32) }
}

/// A grant entry (grant_table.h: grant_entry_v1, and Xen's active entry with its pin counts).
///
/// Flags, domain and counts are one word, so that checking a grant and pinning it is one compare-and-exchange.
///
///     63        48 47        32 31      16 15             0
///     | writers   | readers    | domain   | flags          |
///
/// While `busy` is set the upper half is the number of the join that is making or freeing the entry, so that the
/// host can finish the job of a process that died at it.
struct GrantEntry {
  static let permitAccess: UInt64 = 1
  static let readOnly: UInt64 = 4
  static let allocated: UInt64 = 0x8000
  static let busy: UInt64 = 0x4000
  static let reader: UInt64 = 1 << 32
  static let writer: UInt64 = 1 << 48

  let record: SharedRecord
  var word: SharedUInt64 { record.word64(0) }
  /// The join that shares the page.
  var owner: SharedUInt32 { record.word32(8) }
  /// The owner's port that is notified when it lets go; 0 for none.
  var notifyPort: SharedUInt32 { record.word32(12) }
  /// The byte that is cleared when the owner lets go; all ones for none.
  var clearOffset: SharedUInt32 { record.word32(16) }
  /// The handle that the port has to belong to.
  var notifyHandle: SharedUInt32 { record.word32(20) }

  static func readers(_ word: UInt64) -> UInt64 { (word >> 32) & 0xFFFF }
  static func writers(_ word: UInt64) -> UInt64 { word >> 48 }
  static func domain(_ word: UInt64) -> UInt16 { UInt16(truncatingIfNeeded: word >> 16) }
  static func busy(by join: UInt32) -> UInt64 { busy | allocated | UInt64(join) << 32 }
}

/// A maptrack entry: one mapped page, or a link of a free list.
struct MaptrackEntry {
  static let active: UInt32 = 1 << 31
  static let readOnly: UInt32 = 1 << 30

  let record: SharedRecord
  /// The granted reference; in a free entry the next one of the list.
  var reference: SharedUInt32 { record.word32(0) }
  /// `active`, `readOnly` and the granter's number; 0 in a free entry.
  var state: SharedUInt32 { record.word32(4) }
  /// The granter's incarnation.
  var serial: SharedUInt32 { record.word32(8) }
  /// The list that the entry belongs to.
  var vcpu: SharedUInt32 { record.word32(12) }
  /// What unmapping does: a port of the mapper (0 for none), a byte of the page (all ones for none).
  var notifyPort: SharedUInt32 { record.word32(16) }
  var clearOffset: SharedUInt32 { record.word32(20) }
  /// The entry of the next page of the same `map` call.
  var next: SharedUInt32 { record.word32(24) }
  /// The handle that the port has to belong to.
  var notifyHandle: SharedUInt32 { record.word32(28) }
}

/// An event-channel port.
struct PortEntry {
  enum Kind: UInt64 {
    case free = 0
    case unbound = 1
    case interdomain = 2
  }
  static let pending: UInt32 = 1
  static let masked: UInt32 = 2

  let record: SharedRecord
  /// Kind in bits 0 to 7, the remote domain in 16 to 31, the remote port in 32 to 63.
  var state: SharedUInt64 { record.word64(0) }
  var bits: SharedUInt32 { record.word32(8) }
  /// The handle that receives events: its number, unique for the host, and its place in the table of handles.
  var handle: SharedUInt32 { record.word32(12) }
  var handleIndex: SharedUInt32 { record.word32(16) }
  /// The remote domain's incarnation.
  var remoteSerial: SharedUInt32 { record.word32(20) }

  static func state(_ kind: Kind, domain: UInt16, port: UInt32) -> UInt64 {
    kind.rawValue | UInt64(domain) << 16 | UInt64(port) << 32
  }
  static func kind(_ state: UInt64) -> Kind { Kind(rawValue: state & 0xFF) ?? .free }
  static func domain(_ state: UInt64) -> UInt16 { UInt16(truncatingIfNeeded: state >> 16) }
  /// Within the table, whatever a process has written there.
  static func port(_ state: UInt64) -> UInt32 {
    UInt32(truncatingIfNeeded: state >> 32) & UInt32(DomainLayout.portCount - 1)
  }
}

/// An event-channel handle: an eventfd that belongs to one process.
struct HandleEntry {
  let record: SharedRecord
  /// How many writes to the eventfd were announced.
  ///
  /// Whoever writes adds 1 first; whoever reads compares with what it has read, and so knows without a system
  /// call that nothing is there. The eight bytes before it are not used.
  var announced: SharedUInt64 { record.word64(8) }
}
