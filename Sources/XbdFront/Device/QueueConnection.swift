// SPDX-License-Identifier: Apache-2.0
//
// One queue on its way into existence: first the ring and the event channel that the backend is told of, then,
// once the backend has connected, the queue itself.

internal import Blkif
internal import Platform
internal import SystemPackage
internal import Xen

/// The shared resources of one queue, before the backend has connected to them.
final class QueueConnection {
  let port: EventChannelPort
  let ringPages: SharedPages
  let control: QueueControl
  private let channels: any EventChannels
  private let backend: DomainID
  /// Wait here until the backend has connected.
  private var ring: FrontRing?
  private var pool: GrantPool?

  /// Shares a ring and the pool's first pages, and allocates an event channel, all through handles of their own: after
  /// a migration the old ones are of no use.
  ///
  /// The pool comes first into being here, and not when the backend has connected: a queue that finds no page could
  /// never serve a request, and must not be offered.
  init(
    control: QueueControl, _ system: any XenSystem, _ backend: DomainID, _ parameters: TransportParameters,
    _ options: FrontendOptions
  ) throws(XenError) {
    self.control = control
    self.backend = backend
    channels = try system.openEventChannels()
    port = try channels.bindUnbound(remote: backend)
    let sharing = try system.openGrantSharing()
    ringPages = try sharing.share(pages: 1 << parameters.ringPageOrder, with: backend, writable: true)
    // The ring must be in order before the backend hears of it.
    // SAFETY: the pages stay for as long as the ring is used: here, then in the link, then in the queue, which keeps them
    // until it gives the ring up (`QueueCore.isDead`).
    ring = unsafe FrontRing(pages: ringPages.baseAddress, pageCount: ringPages.pageCount, abi: options.abi)
    var pool = GrantPool(
      sharing: sharing, backend: backend, mode: options.grants, bound: parameters.poolPagesPerQueue)
    guard let page = pool.take(1) else {
      try? channels.unbind(port)
      throw XenError(.limitReached, pool.takeLimitMessage() ?? "no page can be shared")
    }
    pool.put(page)
    self.pool = consume pool
  }

  /// Makes what a queue works with, once.
  func makeLink(_ parameters: QueueParameters) throws(XenError) -> QueueLink {
    guard let ring = ring.take(), let pool = pool.take() else {
      throw XenError(.invalid, "queue \(control.queue) was connected before")
    }
    return QueueLink(
      parameters: parameters, ring: ring, pool: pool, channels: channels, port: port, ringPages: ringPages)
  }

  /// Closes the event channel.
  ///
  /// The pages go when the queue does: its owner may still be looking at them.
  func release() {
    try? channels.unbind(port)
  }
}

/// What a queue shares with one backend: handed over to its owner's thread, which takes it apart.
final class QueueLink: @unchecked Sendable {
  // SAFETY: made on the control thread, then used by the queue's owner alone.
  let parameters: QueueParameters
  let channels: any EventChannels
  let port: EventChannelPort
  let ringPages: SharedPages
  private var ring: FrontRing?
  private var pool: GrantPool?

  init(
    parameters: QueueParameters, ring: consuming FrontRing, pool: consuming GrantPool,
    channels: any EventChannels, port: EventChannelPort, ringPages: SharedPages
  ) {
    self.parameters = parameters
    self.ring = consume ring
    self.pool = consume pool
    self.channels = channels
    self.port = port
    self.ringPages = ringPages
  }

  func takeRing() -> FrontRing? { ring.take() }
  func takePool() -> GrantPool? { pool.take() }
}
