// SPDX-License-Identifier: Apache-2.0
//
// The free list of persistent grants, after NetBSD's xbd_xenbus: pages that are shared with the backend once and
// then used for one request after another. Last in, first out: the pages in use stay few, warm in the caches,
// and mapped in the backend.
//
//   unused indices ──share(chunk)──► free list ──take(n)──► a request's list ──put──► free list (in the same order)
//
// Pages are numbered; a table says for each number where it is, its grant reference, and what follows it in its
// list. A request's pages are one such list, so that taking and giving back any number of them allocates
// nothing, and giving back is one splice that keeps neighbours next to each other.

internal import Blkif
internal import Platform
internal import Xen

/// How pages come to be shared with the backend.
public enum GrantMode: String, Sendable, CaseIterable {
  /// Shared once and kept: the free list.
  case persistent
  /// Shared for one operation and unshared behind it; to measure what persistence saves.
  case perRequest = "per-request"
}

/// A list of pages taken from a pool: first and last number and the count.
///
/// Owned by whoever took it.
struct PageList {
  var first: Int32 = -1
  var last: Int32 = -1
  var count: Int32 = 0
  var isEmpty: Bool { count == 0 }

  /// Takes the first pages off the list.
  ///
  /// - Parameter wanted: 1 or more, and not more than there are.
  @inline(__always)
  mutating func cut(_ wanted: Int, _ pages: inout Table<PoolPage>) -> PageList {
    var end = first
    for _ in 1..<max(wanted, 1) { end = pages[end].next }
    let taken = PageList(first: first, last: end, count: Int32(wanted))
    first = pages[end].next
    count -= Int32(wanted)
    if count == 0 { self = PageList() }
    pages[end].next = -1
    return taken
  }
}

/// What a pool knows of a page.
struct PoolPage {
  /// Where it is; nil while it is not shared.
  var memory: GrantedPage?
  /// What names it in a request.
  var reference = GrantRef(0)
  /// What follows it in its list.
  var next: Int32 = -1
}

/// The granted pages of one queue.
///
/// Used by the queue's thread only.
struct GrantPool: ~Copyable {
  /// Pages shared by one call where there is room: few enough to give back, many enough to be cheap.
  static let chunkPages = 64

  private let sharing: any GrantSharing
  private let backend: DomainID
  let mode: GrantMode
  /// The most pages that the pool may have; shrinks when the domain's limit is met.
  private(set) var bound: Int
  private let capacity: Int
  private var pages: Table<PoolPage>
  private var free = PageList()
  private var unused = PageList()
  private var chunks: [SharedPages] = []
  /// Chunks of the mode `perRequest`, by the number of their first page.
  private var transient: [Int32: SharedPages] = [:]
  /// Pages that are shared now.
  private(set) var sharedPages = 0
  /// The most pages that were in use at once.
  private(set) var highWater = 0
  /// Grants made so far, and ended.
  private(set) var grantsMade: UInt64 = 0
  private(set) var grantsEnded: UInt64 = 0
  /// Pages taken that had been shared before: what persistence saved.
  private(set) var grantsReused: UInt64 = 0
  /// Set when the domain's limit made the pool smaller than it was meant to be; told once.
  private(set) var limitMessage: String?
  /// What was said first: with `perRequest` the numbers are others each time, and it is the same news.
  private var firstLimitMessage: String?

  /// Creates a pool with nothing shared yet.
  ///
  /// - Parameters:
  ///   - sharing: where grants come from.
  ///   - backend: who may map the pages.
  ///   - bound: the most pages, 1 or more.
  init(sharing: any GrantSharing, backend: DomainID, mode: GrantMode, bound: Int) {
    self.sharing = sharing
    self.backend = backend
    self.mode = mode
    self.bound = bound
    capacity = bound
    pages = Table(count: bound) { PoolPage(next: $0 + 1 < bound ? Int32($0 + 1) : -1) }
    unused = PageList(first: 0, last: Int32(bound - 1), count: Int32(bound))
  }

  deinit {
    // Nobody can tell whether the backend still maps them: they are handed back empty (XSA-396). But not those of requests
    // that it has not answered: it would write zeroes where a write's payload was, and find others' grants in a list of
    // segments.
    var page = free.first
    while page >= 0 {
      memory(page).clear()
      page = pages[page].next
    }
    // The pages themselves go with `chunks`: unsharing is what SharedPages does on its end.
  }

  /// Pages in use by requests.
  var pagesInUse: Int { mode == .persistent ? sharedPages - Int(free.count) : sharedPages }

  /// Pages that `take` could give, if the domain's limit allows.
  var available: Int { bound - pagesInUse }

  // MARK: Taking and giving back

  /// Takes pages; what they hold is left over from earlier requests to the same backend.
  ///
  /// - Parameters:
  ///   - count: 1 or more.
  ///   - spare: how many more there have to be.
  /// - Returns: a list, or nil when there are not that many.
  mutating func take(_ count: Int, leaving spare: Int = 0) -> PageList? {
    if mode == .perRequest { return takeTransient(count, leaving: spare) }
    let reused = min(count, Int(free.count))
    while free.count < count + spare {
      guard grow(atLeast: count + spare - Int(free.count)) else { return nil }
    }
    grantsReused &+= UInt64(reused)
    let list = free.cut(count, &pages)
    highWater = max(highWater, pagesInUse)
    return list
  }

  /// Gives pages back to the front of the free list, in their order.
  @inline(__always)
  mutating func put(_ list: PageList) {
    guard list.count > 0 else { return }
    if mode == .perRequest { return putTransient(list) }
    pages[list.last].next = free.first
    if free.count == 0 { free.last = list.last }
    free.first = list.first
    free.count += list.count
  }

  /// Takes pages off a list that was taken, to be given back before the others.
  ///
  /// Not of a pool that shares pages for one request: those it ends together.
  ///
  /// - Parameter count: 1 or more, and not more than the list has.
  @inline(__always)
  mutating func cut(_ count: Int, from list: inout PageList) -> PageList { list.cut(count, &pages) }

  /// The memory of a page that was taken.
  @inline(__always)
  func memory(_ page: Int32) -> GrantedPage {
    guard let memory = pages[page].memory else { preconditionFailure("a page that is not shared") }
    return memory
  }
  @inline(__always)
  func reference(_ page: Int32) -> GrantRef { pages[page].reference }
  @inline(__always)
  func next(_ page: Int32) -> Int32 { pages[page].next }

  // MARK: Sharing

  /// Shares another chunk; smaller ones when the domain's limit is near.
  private mutating func grow(atLeast needed: Int) -> Bool {
    let room = bound - sharedPages
    guard room >= needed else { return false }
    var count = min(room, max(Self.chunkPages, needed))
    while true {
      do throws(XenError) {
        let chunk = try sharing.share(pages: count, with: backend, writable: true)
        chunks.append(chunk)
        put(adopt(chunk))
        return true
      } catch {
        guard count > 1 else {
          meetLimit(error, bound: sharedPages)
          return false
        }
        count /= 2
      }
    }
  }

  /// The domain has no more pages for us: live with fewer, and say so.
  private mutating func meetLimit(_ error: XenError, bound new: Int) {
    guard new < bound else { return }
    let message =
      "the grant pool stays at \(new) of \(capacity) pages, requests will wait for each other: \(error)"
    if mode == .persistent || firstLimitMessage == nil { firstLimitMessage = message }
    limitMessage = firstLimitMessage
    bound = max(new, 1)
  }

  private mutating func adopt(_ chunk: SharedPages) -> PageList {
    let list = unused.cut(chunk.pageCount, &pages)
    var page = list.first
    for index in 0..<chunk.pageCount {
      pages[page].memory = GrantedPage(chunk, index)
      pages[page].reference = chunk.references[index]
      page = pages[page].next
    }
    sharedPages += chunk.pageCount
    grantsMade &+= UInt64(chunk.pageCount)
    return list
  }

  private mutating func takeTransient(_ count: Int, leaving spare: Int) -> PageList? {
    guard available >= count + spare else { return nil }
    do throws(XenError) {
      let chunk = try sharing.share(pages: count, with: backend, writable: true)
      let list = adopt(chunk)
      transient[list.first] = chunk
      highWater = max(highWater, sharedPages)
      return list
    } catch {
      // Asked for half as much, a request may still find its pages.
      meetLimit(error, bound: sharedPages + count / 2)
      return nil
    }
  }

  private mutating func putTransient(_ list: PageList) {
    // Dropping the last reference unshares the pages.
    if let chunk = transient.removeValue(forKey: list.first) { Self.clear(chunk) }
    var page = list.first
    for _ in 0..<list.count {
      pages[page].memory = nil
      page = pages[page].next
    }
    pages[list.last].next = unused.first
    if unused.count == 0 { unused.last = list.last }
    unused.first = list.first
    unused.count += list.count
    sharedPages -= Int(list.count)
    grantsEnded &+= UInt64(list.count)
  }

  /// Looks whether the domain's limit has been raised since it was met; if so, the pool may grow again.
  mutating func tryToGrow() {
    guard bound < capacity, mode == .persistent else {
      // Nothing is kept that could be shared to find out: the next operations will.
      bound = capacity
      return
    }
    let old = bound
    bound = capacity
    if !grow(atLeast: 1) { bound = min(bound, max(old, 1)) }
  }

  /// A pool with nothing shared, in the place of one that is let go of.
  func emptied() -> GrantPool {
    GrantPool(sharing: sharing, backend: backend, mode: mode, bound: 1)
  }

  private static func clear(_ chunk: SharedPages) {
    for index in 0..<chunk.pageCount { GrantedPage(chunk, index).clear() }
  }

  /// Takes the message about the domain's limit, once.
  mutating func takeLimitMessage() -> String? {
    defer { limitMessage = nil }
    return limitMessage
  }
}
