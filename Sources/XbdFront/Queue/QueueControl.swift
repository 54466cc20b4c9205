// SPDX-License-Identifier: Apache-2.0
//
// The only thing that a queue's thread and the device's control thread share: news in one direction, reports in
// the other. A queue without news pays one relaxed load for it.

internal import Platform
internal import Synchronization
internal import Xen

/// What the control thread tells a queue.
struct QueueNews {
  /// The device has a new size, in 512-byte units.
  var sectorCount: UInt64?
  /// New operations are refused with this.
  var refusal: OperationStatus?
  /// Everything in flight ends with this: nobody will answer any more.
  var failEverything: OperationStatus?
  /// Somebody wants to know what was counted so far.
  var wantsCounters: Handoff<QueueCounters>?
}

/// What a queue tells the control thread.
enum QueueReport: Sendable {
  /// Nothing is in flight any more, and nothing new is taken on.
  case drained(queue: Int)
  /// The backend broke the protocol.
  case violation(queue: Int, ProtocolViolation)
  /// Something a person should know.
  case message(String)
}

/// The letter box between one queue and its device.
final class QueueControl: Sendable {
  let queue: Int
  private let news = Mutex(QueueNews())
  private let newsArrived = Atomic<Bool>(false)
  private let draining = Atomic<Bool>(false)
  private let wakeQueue = Mutex<@Sendable () -> Void>({})
  private let report: @Sendable (QueueReport) -> Void

  /// - Parameter report: called on the queue's thread; must not wait.
  init(queue: Int, report: @escaping @Sendable (QueueReport) -> Void) {
    self.queue = queue
    self.report = report
  }

  func attach(wake: @escaping @Sendable () -> Void) {
    wakeQueue.withLock { $0 = wake }
  }

  // MARK: From the control thread

  /// Changes what the queue will be told, and wakes it.
  func tell(_ change: (inout QueueNews) -> Void) {
    news.withLock { change(&$0) }
    newsArrived.store(true, ordering: .releasing)
    wakeQueue.withLock { $0() }
  }

  /// Refuses new operations and asks for a report when those in flight have ended.
  func drain(refusing status: OperationStatus) {
    draining.store(true, ordering: .releasing)
    tell { $0.refusal = status }
  }

  // MARK: From the queue's thread

  var hasNews: Bool { newsArrived.load(ordering: .relaxed) }
  var isDraining: Bool { draining.load(ordering: .relaxed) }

  func takeNews() -> QueueNews {
    newsArrived.store(false, ordering: .relaxed)
    return news.withLock { state in
      let taken = state
      state = QueueNews()
      return taken
    }
  }

  func reportDrained() {
    draining.store(false, ordering: .relaxed)
    report(.drained(queue: queue))
  }

  func send(_ violation: ProtocolViolation) { report(.violation(queue: queue, violation)) }
  func send(_ message: String) { report(.message(message)) }
}
