// SPDX-License-Identifier: Apache-2.0
//
// Accepts clients on any number of sockets and deals them out to workers. The accepting thread never sees a request.

internal import CXen
internal import Glibc
internal import Platform
internal import Synchronization
public import SystemPackage

/// An NBD service: listening sockets, an accepting thread, and workers with a target each.
///
/// With several workers every target has to be the same device, and a flush through one has to cover writes that
/// completed through another: the service tells clients so (`NBD_FLAG_CAN_MULTI_CONN`).
public final class Server: Sendable {
  /// Where it listens.
  public let sockets: [ListeningSocket]
  /// What a connection's socket may hold of replies, in bytes; the kernel counts its own bookkeeping in.
  private static let sendBufferBytes: Int32 = 1 << 20
  private let workers: [Worker]
  private let limiter: ConnectionLimiter
  private let wakeup: EventCounter
  private let isStopping = Atomic(false)
  private let refused = Atomic<UInt64>(0)
  private let acceptor = Mutex<DedicatedThread?>(nil)

  /// Starts to serve.
  ///
  /// - Parameters:
  ///   - sockets: where clients connect.
  ///   - targets: one for each worker, at least one; each is used by its worker's thread only.
  ///   - export: under what name, and whether read-only.
  ///   - maximumConnections: clients at a time over all workers; further ones are closed as soon as they come.
  ///   - configuration: of each worker.
  /// - Throws: `Errno` when there is no descriptor or thread to be had.
  public init(
    sockets: [ListeningSocket], targets: sending [any BlockTarget], export: Export,
    maximumConnections: Int = 64, configuration: WorkerConfiguration = WorkerConfiguration()
  ) throws(Errno) {
    precondition(!targets.isEmpty, "a server without a target")
    self.sockets = sockets
    let limiter = ConnectionLimiter(limit: max(maximumConnections, 1))
    self.limiter = limiter
    let group = WorkerGroup()
    wakeup = try EventCounter()
    var bounds = configuration
    // Round robin is blind to who left, so any worker may come to hold all of them.
    bounds.maximumConnections = max(maximumConnections, 1)
    let events = try EventLoop()
    try events.add(wakeup.fileDescriptor, .readable, token: .max)
    for (index, socket) in sockets.enumerated() {
      try events.add(socket.descriptor.raw, .readable, token: UInt64(index))
    }
    let box = LoopBox(events)
    var workers: [Worker] = []
    for (index, target) in targets.enumerated() {
      // SAFETY: each target goes to its own thread and is not touched here again.
      nonisolated(unsafe) let given = target
      do throws(Errno) {
        workers.append(
          unsafe try Worker(
            name: "nbd-\(index)", target: given, export: export, configuration: bounds, limiter: limiter,
            group: group))
      } catch {
        Self.end(workers, gracePeriod: .zero)
        throw error
      }
    }
    self.workers = workers
    do throws(Errno) {
      let thread = try DedicatedThread(name: "nbd-accept") { [self] in
        guard let events = box.events.take() else { return }
        acceptUntilStopped(events)
      }
      acceptor.withLock { $0 = thread }
    } catch {
      Self.end(workers, gracePeriod: .zero)
      throw error
    }
  }

  /// Ends workers and waits for them: their targets are nobody's then.
  @discardableResult
  private static func end(_ workers: [Worker], gracePeriod: Duration) -> [WorkerOutcome] {
    for worker in workers { worker.stop(gracePeriod: gracePeriod) }
    return workers.map { $0.join() }
  }

  /// Clients at this moment.
  public var connectionCount: Int { limiter.count }

  /// What all workers counted so far.
  public func statistics() -> WorkerStatistics {
    var sum = WorkerStatistics()
    for worker in workers { sum.add(worker.statistics()) }
    sum[.connectionsRefused] += refused.load(ordering: .relaxed)
    return sum
  }

  /// Ends the service: no new clients, `Worker.stop` for every worker, and waits for them.
  ///
  /// - Parameter gracePeriod: how long clients may keep it from ending.
  /// - Returns: how each worker ended. A second call returns the same.
  @discardableResult
  public func stop(gracePeriod: Duration = .seconds(5)) -> [WorkerOutcome] {
    isStopping.store(true, ordering: .relaxed)
    wakeup.signal()
    acceptor.withLock { $0 }?.join()
    return Self.end(workers, gracePeriod: gracePeriod)
  }

  private final class LoopBox: @unchecked Sendable {
    var events: EventLoop?
    init(_ events: consuming EventLoop) { self.events = consume events }
  }

  private func acceptUntilStopped(_ events: borrowing EventLoop) {
    var next = 0
    while !isStopping.load(ordering: .relaxed) {
      let count = events.wait(milliseconds: nil)
      for index in 0..<count {
        let token = events.event(index).token
        guard token < UInt64(sockets.count) else { continue }
        accept(sockets[Int(token)], &next)
      }
    }
  }

  private func accept(_ socket: ListeningSocket, _ next: inout Int) {
    while !isStopping.load(ordering: .relaxed) {
      let raw: Int32
      do throws(Errno) {
        guard let accepted = try UnixSocket.accept(socket.descriptor.raw) else { return }
        raw = accepted
      } catch {
        // Out of descriptors: the client stays in the backlog. Looking again at once would only burn the processor.
        usleep(50_000)
        return
      }
      guard limiter.enter() else {
        _ = Glibc.close(raw)
        refused.add(1, ordering: .relaxed)
        continue
      }
      // A client whose machine is gone would keep its place for ever. (No matter on a Unix socket.)
      setOption(raw, SOL_SOCKET, SO_KEEPALIVE, to: 1)
      // Fails on a Unix socket, which has no such delay.
      setOption(raw, Int32(IPPROTO_TCP), TCP_NODELAY, to: 1)
      // The usual 208 KiB are less than one large reply: the send would stop and start again in the middle of each.
      if !setOption(raw, SOL_SOCKET, SO_SNDBUFFORCE, to: Self.sendBufferBytes) {
        // Only root may go beyond net.core.wmem_max.
        setOption(raw, SOL_SOCKET, SO_SNDBUF, to: Self.sendBufferBytes)
      }
      _ = workers[next].adoptCounted(OwnedDescriptor(raw))
      next = (next + 1) % workers.count
    }
  }
}
