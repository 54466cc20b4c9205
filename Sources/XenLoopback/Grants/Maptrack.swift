// SPDX-License-Identifier: Apache-2.0
//
// Maptrack handles: each mapped page takes an entry of its mapper's maptrack table, which says what is mapped, so
// that unmapping, or the mapper's death, can find the grant again. Free entries are in lists, one for each vCPU, as
// Xen does it since "gnttab: use per-VCPU maptrack free lists" (Malcolm Crossley, David Vrabel, 2015); the single
// list under a lock that Xen had before is here too, to compare with.
//
//   vCPU 0   head ──► [7] ──► [8] ──► [3] ◄── tail      taken at the head by vCPU 0 alone: no atomic exchange
//   vCPU 1   head ──► [129] ──► [130] ◄── tail          put back at the tail by anyone: one exchange
//
// An entry goes back to the list it came from, whoever frees it, so that no vCPU collects the entries of others.

internal import Platform

/// Where free maptrack handles are kept.
public enum MaptrackPolicy: String, Sendable, CaseIterable {
  /// A list for each vCPU: taking needs no lock, giving back one atomic exchange.
  case perVCPU
  /// One list for the domain under one lock, as Xen had before 4.6.
  case singleLockedList
}

/// The free lists of one join, over the maptrack table of its domain.
///
/// The links are in the shared entries, the list heads in the process: entries go back through the process that took
/// them, and when it dies the host takes its frames back whole.
@safe final class Maptrack: Sendable {
  /// No entry: the end of a list.
  static let none: UInt32 = .max
  /// How many lists there are, a power of two; more handles than this share.
  static let vcpuCount = 64

  let policy: MaptrackPolicy
  private let memory: DomainMemory
  private let join: UInt32
  // SAFETY: of `vcpuCount` times 128 bytes, allocated by the initialiser and given back in the deinit; once that is over it
  // is only reached as the atomics that `head` and `tail` give.
  private nonisolated(unsafe) let lists: UnsafeMutableRawPointer
  /// How many handles run on each vCPU.
  private let users = Guarded([Int](repeating: 0, count: vcpuCount))
  private let single = SpinLocked(Maptrack.none)
  // A vCPU makes one hypercall at a time, which a thread of a process has to ask for: 16 ns when nobody contends.
  private let turns: [Turn]

  private final class Turn: Sendable {
    let lock = Guarded(())
  }

  init(_ memory: DomainMemory, join: UInt32, policy: MaptrackPolicy) {
    self.memory = memory
    self.join = join
    self.policy = policy
    turns = (0..<Self.vcpuCount).map { _ in Turn() }
    // SAFETY: new memory, filled to its end: all lists are empty.
    unsafe lists = .allocate(byteCount: Self.vcpuCount * 128, alignment: 128)
    unsafe lists.initializeMemory(as: UInt32.self, repeating: Self.none, count: Self.vcpuCount * 32)
  }

  deinit {
    // SAFETY: of the initialiser; words of it are used in methods of this object only.
    unsafe lists.deallocate()
  }

  // Head and tail are on different cache lines: one is the owner's, the other is everybody's.
  // SAFETY of both: masked, so it is one of the lists, and on a cache line's beginning.
  private func head(_ vcpu: Int) -> SharedUInt32 {
    unsafe SharedUInt32(lists + (vcpu & (Self.vcpuCount - 1)) * 128)
  }
  private func tail(_ vcpu: Int) -> SharedUInt32 {
    unsafe SharedUInt32(lists + ((vcpu & (Self.vcpuCount - 1)) * 128 + 64))
  }

  /// A vCPU for a new handle: the first that has the fewest, so that a process whose handles come and go stays with
  /// the same few lists and what they have grown to.
  func assignVCPU() -> Int {
    users.withLock { users in
      let vcpu = users.indices.min { users[$0] < users[$1] } ?? 0
      users[vcpu] += 1
      return vcpu
    }
  }

  /// Gives a handle's vCPU back.
  func releaseVCPU(_ vcpu: Int) {
    users.withLock { $0[vcpu] -= 1 }
  }

  /// Takes a free handle, after waiting until the vCPU is free.
  ///
  /// When the domain has used its frames up, one of another vCPU's list is taken, as Xen does
  /// (steal_maptrack_handle); it goes back there.
  ///
  /// - Returns: nil when nobody has one left.
  func take(_ vcpu: Int) -> UInt32? {
    if let handle = turns[vcpu].lock.withLock({ _ in take(asVCPU: vcpu) }) { return handle }
    guard policy == .perVCPU else { return nil }
    for step in 1..<Self.vcpuCount {
      let other = (vcpu + step) % Self.vcpuCount
      if let handle = turns[other].lock.withLock({ _ in takeFromList(other) }) { return handle }
    }
    return nil
  }

  /// Takes a free handle of this vCPU's own.
  ///
  /// - Parameter vcpu: whose list to take from; nobody else takes from it meanwhile, as a vCPU makes one hypercall
  ///   at a time. Anybody may put entries back.
  /// - Returns: nil when the domain has used its frames up.
  func take(asVCPU vcpu: Int) -> UInt32? {
    switch policy {
    case .perVCPU:
      if let handle = takeFromList(vcpu) { return handle }
      return grow(vcpu) ? takeFromList(vcpu) : nil
    case .singleLockedList:
      return single.withLock { head in
        if head == Self.none, let frame = claimFrame() {
          fill(frame, vcpu: 0, last: Self.none)
          head = UInt32(frame * DomainLayout.entriesPerFrame)
        }
        guard head != Self.none else { return nil }
        let handle = head
        head = memory.maptrack(handle).reference.loadRelaxed()
        return handle
      }
    }
  }

  /// Gives a handle back.
  ///
  /// From any thread, without any lock held.
  func put(_ handle: UInt32) {
    let entry = memory.maptrack(handle)
    switch policy {
    case .perVCPU:
      // Whatever the entry says by now, one of the lists.
      let vcpu = Int(entry.vcpu.loadRelaxed()) & (Self.vcpuCount - 1)
      entry.reference.storeRelaxed(Self.none)
      // First the tail, then the link: for a moment the list ends early, at the entry that was the tail, and
      // everything put back since hangs behind entries that are not linked yet. Each is linked by who replaced it as
      // the tail, so in the end all are. The patch loops on a compare-and-exchange; an exchange is the same step.
      let previous = tail(vcpu).exchange(handle)
      // There always is a previous entry, because `takeFromList` never takes the last; but not if another process has
      // written another list's number into the entry, and then it is lost.
      guard previous != Self.none else { return }
      // Pairs with the .acquiring load there: who sees the link sees the entry end in `none`.
      memory.maptrack(previous).reference.storeReleasing(handle)
    case .singleLockedList:
      single.withLock { head in
        entry.reference.storeRelaxed(head)
        head = handle
      }
    }
  }

  /// The list is never emptied: its last entry is where `put` hangs the next one.
  ///
  /// Keep it that way. An entry whose link is not written yet looks like the last one, so at worst we grow a
  /// frame too early.
  private func takeFromList(_ vcpu: Int) -> UInt32? {
    let first = head(vcpu).loadRelaxed()
    guard first != Self.none else { return nil }
    let next = memory.maptrack(first).reference.loadAcquiring()
    guard next != Self.none else { return nil }
    head(vcpu).storeRelaxed(next)
    return first
  }

  /// Puts a new frame of entries in front of a vCPU's list.
  private func grow(_ vcpu: Int) -> Bool {
    guard let frame = claimFrame() else { return false }
    let first = UInt32(frame * DomainLayout.entriesPerFrame)
    let old = head(vcpu).loadRelaxed()
    fill(frame, vcpu: UInt32(vcpu), last: old)
    if old == Self.none {
      // Only ever for a vCPU's first frame, as the list is never emptied: nobody can be putting back yet, so the
      // tail needs no care.
      tail(vcpu).storeReleasing(first + UInt32(DomainLayout.entriesPerFrame) - 1)
    }
    head(vcpu).storeRelaxed(first)
    return true
  }

  private func fill(_ frame: Int, vcpu: UInt32, last: UInt32) {
    let first = UInt32(frame * DomainLayout.entriesPerFrame)
    for offset in 0..<UInt32(DomainLayout.entriesPerFrame) {
      let entry = memory.maptrack(first + offset)
      let isLast = offset == UInt32(DomainLayout.entriesPerFrame) - 1
      entry.state.storeRelaxed(0)
      entry.vcpu.storeRelaxed(vcpu)
      entry.reference.storeReleasing(isLast ? last : first + offset + 1)
    }
  }

  private func claimFrame() -> Int? {
    let limit = Int(memory.header.frameLimit.loadRelaxed())
    for frame in 0..<min(limit, DomainLayout.frameCount) {
      let owner = memory.frameOwner(frame)
      if owner.loadRelaxed() == 0,
        owner.compareExchange(expected: 0, desired: join)
      {
        return frame
      }
    }
    return nil
  }
}
