// SPDX-License-Identifier: Apache-2.0
//
// A whole Xen in this process: a loopback host, the reference backend in domain 0, and a device for domain 1. The
// backend's queues run on the threads of the frontend's, so that a request costs no switch of thread.

import Blkif
import Logging
import XbdBack
import XbdFront
import XenLoopback
import Xen

final class EmbeddedLoopback {
  /// The device's number as the frontend's domain sees it.
  static let device = VirtualDevice(number: 51712)

  private let host: LoopbackHost
  private let backend: Backend
  private let served: BackendDevice
  /// Xen as the frontend's domain sees it.
  let frontend: any XenSystem

  /// Starts host and backend; the device waits for its frontend.
  init(
    directory: String, image: String, storage: any Storage, configuration: BackendConfiguration,
    kind: String, pageLimit: Int,
    logger: Logger
  ) throws {
    host = try LoopbackHost(directory: directory)
    let toolstack = try LoopbackToolstack(directory: host.directory)
    try toolstack.createDomain(loopbackFrontend, pageLimit: pageLimit)
    var nodes = LoopbackBlockDevice(
      virtualDevice: Self.device.number, name: Self.device.name ?? "", frontend: loopbackFrontend)
    nodes.kind = kind
    nodes.parameters = image
    nodes.isReadOnly = configuration.readOnly
    try toolstack.attach(nodes)
    backend = try Backend(system: LoopbackDomain(joining: host.directory, domain: .dom0), logger: logger)
    var configuration = configuration
    configuration.execution = .colocated
    served = try backend.add(directory: nodes.backendPath, storage: storage, configuration: configuration)
    frontend = try LoopbackDomain(joining: host.directory, domain: loopbackFrontend)
  }

  /// Lets the backend's queues run on the threads of the frontend's.
  ///
  /// After the device has connected.
  func runInline(_ queues: [BlockQueue]) throws {
    for (index, queue) in queues.enumerated() {
      guard Self.attach(queue, index, served) else {
        throw Failure("the loopback's backend has no queue \(index)")
      }
      // After a migration the backend has another end of another ring.
      queue.onReconnect = { [served, unowned queue] in _ = Self.attach(queue, index, served) }
    }
  }

  /// - Returns: false when the backend has no such queue.
  private static func attach(_ queue: BlockQueue, _ index: Int, _ served: BackendDevice) -> Bool {
    // Some backends say that they are connected before they have attached the ring.
    _ = served.waitForQueues(index + 1, milliseconds: 10_000)
    guard let backend = served.colocatedQueue(index) else { return false }
    queue.runInline(InlineQueue(backend))
    return true
  }

  /// What the backend has done.
  var statistics: BackendStatistics { served.statistics }

  /// Ends backend and host.
  ///
  /// After the frontend has closed.
  func stop() {
    backend.stop(waiting: 2000)
    host.stop()
  }
}

/// A queue of the reference backend, run by the frontend's thread.
private final class InlineQueue: InlineBackend {
  private let queue: ColocatedQueue

  init(_ queue: ColocatedQueue) {
    self.queue = queue
  }

  func run() -> Bool { queue.run() }
  var wakeDescriptor: Int32 { queue.wakeDescriptor }
}
