// SPDX-License-Identifier: Apache-2.0
//
// The hostile backend's half of the handshake, honest by default, and what it does to xenstore.

internal import Glibc
internal import Platform
internal import Xen
internal import XenLoopback

extension HostileBackend {
  var path: String { machine.device.backendPath }
  var frontPath: String { machine.device.frontendPath }

  /// Everything at once, before InitWait.
  func publishNodes() throws(XenError) {
    for (key, value) in nodes { try store.write("\(path)/\(key)", value) }
    applyNodeFaults()
    var first: UInt8 = 2
    for case .startAt(let state) in plan.faults { first = state }
    setState(stuckState ?? first)
  }

  var stuckState: UInt8? {
    for case .stuck(let state) in plan.faults { return state }
    return nil
  }

  private func applyNodeFaults() {
    for case .node(let key, let value) in plan.faults {
      if let value {
        try? store.write("\(path)/\(key)", value)
      } else {
        try? store.remove("\(path)/\(key)")
      }
    }
  }

  /// A new plan's faults in xenstore begin.
  func applyStorePlan() {
    applyNodeFaults()
    if let stuckState, stuckState != state { setState(stuckState) }
    for fault in plan.faults {
      switch fault {
      case .vanish: try? store.remove(path)
      case .denyReading:
        try? store.setPermissions(path, [XenStorePermission(domain: .dom0, read: false, write: false)])
        for key in nodes.keys.sorted() + ["state"] {
          try? store.setPermissions(
            "\(path)/\(key)", [XenStorePermission(domain: .dom0, read: false, write: false)])
        }
      default: break
      }
    }
  }

  /// Writes the own state.
  public func setState(_ new: UInt8) {
    state = new
    try? store.write("\(path)/state", String(new))
    observe { $0.stateWrites += 1 }
  }

  func receiveWatches() {
    var moved = false
    while let event = try? store.nextWatchEvent() { moved = moved || event.token == "front" }
    if moved { follow() }
  }

  /// Answers the frontend's state.
  func follow() {
    guard let text = (try? store.read(frontPath + "/state")).flatMap({ $0 }), let front = UInt8(text) else {
      letGo(keeping: has(.keepMappings))
      return
    }
    let isNew = front != lastSeenFrontend
    lastSeenFrontend = front
    observe { if $0.states.last != front { $0.states.append(front) } }
    if stuckState != nil { return }
    for case .followLate(let state) in plan.faults where !hasFollowedLate {
      hasFollowedLate = front == 3
      return hasFollowedLate ? setState(state) : ()
    }
    switch front {
    case 1:
      if state >= 5 || (ring != nil && isNew) {
        letGo(keeping: has(.keepMappings))
        // The toolstack may have made the device anew.
        for (key, value) in nodes.merging(changed, uniquingKeysWith: { $1 }) {
          try? store.write("\(path)/\(key)", value)
        }
        applyNodeFaults()
        setState(2)
      }
    case 3 where ring == nil || isNew, 4 where ring == nil && isNew:
      letGo(keeping: has(.keepMappings))
      for case .refuseToConnect(let state) in plan.faults { return setState(state) }
      attach()
    case 5:
      if state != 5, state != 6 { setState(5) }
    case 6:
      letGo(keeping: has(.keepMappings))
      if state != 6 { setState(6) }
    default: break
    }
  }

  private func number(_ key: String) -> UInt32? {
    (try? store.read("\(frontPath)/\(key)")).flatMap { $0 }.flatMap { UInt32($0) }
  }

  /// Maps the ring, binds the channel, goes to Connected.
  private func attach() {
    let pages = 1 << Int(number("ring-page-order") ?? 0)
    let references =
      pages == 1 ? [number("ring-ref")] : (0..<pages).map { number("ring-ref\($0)") }
    guard let remote = number("event-channel"), references.allSatisfy({ $0 != nil }) else { return }
    do throws(XenError) {
      let grants = HostileGrants(
        mapping: try system.openGrantMapping(), spy: try system.openGrantMapping(),
        isPersistent: number("feature-persistent") == 1)
      let base = try grants.mapping.map(
        references.compactMap { $0.map { GrantRef($0) } }, of: HostileMachine.domain, writable: true)
      let channels = try system.openEventChannels()
      port = try channels.bindInterdomain(remote: HostileMachine.domain, port: EventChannelPort(remote))
      self.channels = channels
      self.grants = grants
      ring = HostileRing(base: base, pageCount: pages)
      ringReferences = Set(references.compactMap { $0 })
      wasKicked = true
      isChannelClosed = false
      isOrphaned = false
      observe { $0.connections += 1 }
      applyNodeFaults()
      setState(4)
    } catch {
      observe { $0.complaints.append("cannot attach: \(error)") }
    }
  }

  /// Lets go of ring, pages and channel; the answers that were owed are never given.
  ///
  /// - Parameter keeping: leave pages mapped.
  func letGo(keeping: Bool) {
    flipper?.stop()
    flipper = nil
    held = []
    heldAnswers = []
    rewrite = []
    answers = []
    late = []
    repeats = []
    guard let ring, let grants else { return }
    self.ring = nil
    if !keeping {
      grants.releaseAll()
      try? grants.mapping.unmap(ring.base, count: ring.pageCount)
      self.grants = nil
    } else {
      kept.append(grants)
      self.grants = nil
    }
    if let port, !isChannelClosed { try? channels?.unbind(port) }
    port = nil
    channels = nil
  }

  /// Faults in xenstore that go on by themselves.
  ///
  /// - Returns: whether anything was done.
  func misbehaveInStore() -> Bool {
    var did = false
    for fault in plan.faults {
      switch fault {
      case .watchStorm where isActive && ring != nil:
        for _ in 0..<50 { setState(state) }
        did = true
      case .resizeStorm where isActive && ring != nil:
        try? store.write(
          "\(path)/sectors", String(disk.bytes.count / 512 - Int(nextRandom() % 100) * 8))
        setState(4)
        did = true
      case .bounce(let states) where isActive && ring != nil && bounces < states.count:
        setState(states[bounces])
        bounces += 1
        did = true
      default: break
      }
    }
    return did
  }
}
