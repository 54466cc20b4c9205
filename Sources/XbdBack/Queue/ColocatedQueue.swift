// SPDX-License-Identifier: Apache-2.0
//
// A queue that runs on somebody else's thread, so that a request costs no switch of thread and no event.

/// A backend's queue for the thread that owns the frontend's end of the same ring.
///
/// The thread's turn is: publish requests, `run`, take responses. Nothing is notified either way: the frontend need
/// not notify (it may, nobody listens), and the backend does not, since responses are there when `run` returns.
/// What a worker has to wait for is answered by a later `run`: `wakeDescriptor` says when.
///
/// `run` and nothing else belongs to that thread; `isAttached` may be asked from anywhere. The control thread may
/// detach the queue between two calls of `run`, which then returns false for ever; a frontend that connects again
/// gets a new queue from `BackendDevice.colocatedQueue`.
public final class ColocatedQueue: Sendable {
  let queue: BackendQueue

  init(_ queue: BackendQueue) {
    self.queue = queue
  }

  /// Takes every request there is, does it and answers it, or gives it to a worker.
  ///
  /// - Returns: whether a request was taken or answered.
  public func run() -> Bool { queue.run() }

  /// Readable while a worker has finished something, and `run` has to be called.
  ///
  /// Valid for as long as this object lives.
  public var wakeDescriptor: Int32 { queue.wakeDescriptor }

  /// Whether the frontend is still connected.
  public var isAttached: Bool { queue.attached }
}
