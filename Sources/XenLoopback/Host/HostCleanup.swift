// SPDX-License-Identifier: Apache-2.0
//
// What the kernel does for a process that ends on Xen, done by the host when a join's connection closes: gntdev
// unmaps, gntalloc ends grants, evtchn closes ports, and each sends the notifications it was asked for.

internal import CXen
internal import Glibc
internal import Platform
internal import Synchronization

extension HostMachine {
  /// Takes back everything that a join holds.
  ///
  /// The process's memory is gone by now, or will not be used again.
  func end(_ join: HostJoin) {
    guard let domain = domain(of: join) else { return }
    let peers = peers(of: join)
    unmapEverything(join, domain)
    unshareEverything(join, domain)
    finishInterruptedWork(join)
    for handle in Array(handles.values) where handle.join === join { closeHandle(handle) }
    remove(join)
    // One that died between the two counts has left its pages in the domain's.
    if domain.joins.isEmpty { domain.memory.header.pagesShared.storeRelaxed(0) }
    // It may have died between setting a port pending and waking its owner. A look in vain costs nothing.
    for handle in handles.values { kick(handle) }
    for peer in peers { lostPeer(join.domain, peer) }
  }

  private func unmapEverything(_ join: HostJoin, _ domain: HostDomain) {
    for frame in 0..<DomainLayout.frameCount {
      let owner = domain.memory.frameOwner(frame)
      guard owner.loadAcquiring() == join.number else { continue }
      for offset in 0..<DomainLayout.entriesPerFrame {
        let entry = domain.memory.maptrack(UInt32(frame * DomainLayout.entriesPerFrame + offset))
        let state = entry.state.exchange(0)
        guard state & MaptrackEntry.active != 0 else { continue }
        let reference = entry.reference.loadRelaxed()
        let granter = domains[UInt16(truncatingIfNeeded: state)]
        if let granter, granter.memory.serial == entry.serial.loadRelaxed() {
          clear(entry.clearOffset.loadRelaxed(), of: reference, in: granter.memory)
          granter.memory.unpin(reference, writable: state & MaptrackEntry.readOnly == 0, join: join.number)
        }
        send(domain, entry.notifyPort.loadRelaxed(), of: entry.notifyHandle.loadRelaxed())
      }
      owner.storeReleasing(0)
    }
  }

  private func unshareEverything(_ join: HostJoin, _ domain: HostDomain) {
    let memory = domain.memory
    var free: [UInt32] = []
    for reference in memory.usedReferences {
      let entry = memory.grant(reference)
      guard entry.word.loadAcquiring() & GrantEntry.permitAccess != 0,
        entry.owner.loadRelaxed() == join.number
      else { continue }
      clear(entry.clearOffset.loadRelaxed(), of: reference, in: memory)
      let (port, handle) = (entry.notifyPort.loadRelaxed(), entry.notifyHandle.loadRelaxed())
      if memory.revoke(reference, join: join.number) { free.append(reference) }
      send(domain, port, of: handle)
    }
    memory.free(free)
    let share = memory.pagesShared(byJoinAt: join.place)
    memory.header.pagesShared.subtractRelaxed(
      share.exchangeRelaxed(0))
  }

  /// Entries that the join was making or freeing when it died, in any domain.
  private func finishInterruptedWork(_ join: HostJoin) {
    let mark = GrantEntry.busy(by: join.number)
    for domain in domains.values {
      let memory = domain.memory
      for reference in memory.usedReferences
      where memory.grant(reference).word.loadAcquiring() == mark {
        memory.free(reference, count: 1)
      }
    }
  }

  private func clear(_ offset: UInt32, of reference: UInt32, in memory: DomainMemory) {
    guard offset < UInt32(Page.size), DomainMemory.isReference(reference) else { return }
    var zero: UInt8 = 0
    // SAFETY: one byte of a local variable.
    _ = unsafe pwrite(memory.pagesDescriptor.raw, &zero, 1, off_t(Int(reference) << Page.shift + Int(offset)))
  }
}
