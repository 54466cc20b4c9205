// SPDX-License-Identifier: Apache-2.0
//
// One queue on its way into existence: first the ring and the event channel that the backend is told of, then,
// once the backend has connected, the queue itself.

internal import Blkif
internal import Platform
internal import SystemPackage
internal import Xen

/// The shared resources of one queue.
final class QueueConnection {
  let index: Int
  let channels: any EventChannels
  let port: EventChannelPort
  let ringPages: SharedPages
  let control: QueueControl
  private let backend: DomainID
  /// Waits here until the queue is made.
  private var ring: FrontRing?

  /// Shares a ring and allocates an event channel.
  init(
    index: Int, _ system: any XenSystem, _ backend: DomainID, _ parameters: TransportParameters,
    _ options: FrontendOptions, shared: DeviceShared
  ) throws(XenError) {
    self.index = index
    self.backend = backend
    channels = try system.openEventChannels()
    port = try channels.bindUnbound(remote: backend)
    ringPages = try system.openGrantSharing().share(
      pages: 1 << parameters.ringPageOrder, with: backend, writable: true)
    control = QueueControl(queue: index) { [weak shared] report in shared?.post(.report(report)) }
    // The ring must be in order before the backend hears of it.
    ring = FrontRing(pages: ringPages.baseAddress, pageCount: ringPages.pageCount, abi: options.abi)
  }

  /// Makes the queue, with its first granted page: a pool without any could never serve a request.
  func makeQueue(
    _ parameters: QueueParameters, _ sharing: any GrantSharing, _ gate: WriteGate
  ) throws(XenError) -> BlockQueue {
    var pool = GrantPool(
      sharing: sharing, backend: backend, mode: parameters.grants, bound: parameters.poolPages)
    guard let page = pool.take(1) else {
      throw XenError(.limitReached, pool.takeLimitMessage() ?? "no page can be shared")
    }
    pool.put(page)
    guard let ring = ring.take() else { throw XenError(.invalid, "queue \(index) was connected before") }
    let core = QueueCore(index: index, parameters: parameters, ring: ring, pool: pool, gate: gate)
    do throws(Errno) {
      return BlockQueue(
        core: core, channels: channels, port: port, ringPages: ringPages, control: control,
        wakeup: try EventCounter())
    } catch {
      throw XenError(errno: error, "making a queue's wake-up descriptor")
    }
  }

  /// Closes the event channel.
  ///
  /// The pages go when the queue does: its owner may still be looking at them.
  func release() {
    try? channels.unbind(port)
  }
}
