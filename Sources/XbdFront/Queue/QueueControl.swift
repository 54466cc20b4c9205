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
  /// Nothing more goes into the ring.
  var hold = false
  /// Report when nothing is in flight any more.
  ///
  /// In one letter with `refusal` or `hold`: a report without them would be about requests that may still come.
  var drain = false
  /// Everything in flight ends with this: nobody will answer any more.
  var failEverything: OperationStatus?
  /// The same, before what follows: what was asked of a ring that is let go of next.
  var failFirst: OperationStatus?
  /// Let go of the ring and everything shared, keep the requests.
  var suspend = false
  /// What to go on with after that.
  var link: QueueLink?
  /// Or, when the backend has fewer queues now: through whom to go on.
  var relay: Relay?
  /// Operations of a queue without a ring, to be carried out here.
  var relayed: [RelayedOperation] = []
  /// What became of our own that were sent away.
  var answers: [RelayAnswer] = []
  /// Look whether the domain's limit has been raised.
  var growPool = false
  /// Somebody wants to know what was counted so far.
  var wantsCounters: Handoff<QueueCounters>?
}

/// What a queue tells the control thread.
enum QueueReport: Sendable {
  /// Nothing is in flight any more, and nothing new is taken on.
  case drained(queue: Int)
  /// The ring and everything shared has been let go of.
  case suspended(queue: Int)
  /// The domain's limit made the pool smaller than it was meant to be.
  case limit(queue: Int, String)
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
  private let wakeQueue = Mutex<@Sendable () -> Void>({})
  private let answered = Mutex(QueueCounters())
  private let report: @Sendable (QueueReport) -> Void

  /// - Parameter report: called on the queue's thread; must not wait.
  init(queue: Int, report: @escaping @Sendable (QueueReport) -> Void) {
    self.queue = queue
    self.report = report
  }

  func attach(wake: @escaping @Sendable () -> Void) {
    wakeQueue.withLock { $0 = wake }
  }

  /// The counters that the queue's thread was asked for last.
  var lastCounters: QueueCounters {
    get { answered.withLock { $0 } }
    set { answered.withLock { $0 = newValue } }
  }

  // MARK: From the control thread

  /// Changes what the queue will be told, and wakes it.
  func tell(_ change: (inout QueueNews) -> Void) {
    news.withLock { change(&$0) }
    newsArrived.store(true, ordering: .releasing)
    wakeQueue.withLock { $0() }
  }

  /// Asks for a report when what is in flight has ended.
  ///
  /// - Parameter status: new operations are refused with it; with nil they wait, and so does what is not in the ring.
  func drain(refusing status: OperationStatus?) {
    tell {
      $0.drain = true
      if let status { $0.refusal = status } else { $0.hold = true }
    }
  }

  /// Has the queue let go of its ring; what it was told of that ring and has not looked at yet counts before.
  func suspend() {
    tell {
      $0.failFirst = $0.failEverything ?? $0.failFirst
      $0.failEverything = nil
      $0.refusal = nil
      $0.hold = false
      $0.drain = false
      $0.sectorCount = nil
      $0.link = nil
      $0.relay = nil
      $0.suspend = true
    }
  }

  // MARK: From the queue's thread

  var hasNews: Bool { newsArrived.load(ordering: .relaxed) }

  func takeNews() -> QueueNews {
    newsArrived.store(false, ordering: .relaxed)
    return news.withLock { state in
      let taken = state
      state = QueueNews()
      return taken
    }
  }

  func reportDrained() { report(.drained(queue: queue)) }
  func reportSuspended() { report(.suspended(queue: queue)) }
  func sendLimit(_ message: String) { report(.limit(queue: queue, message)) }
  func send(_ violation: ProtocolViolation) { report(.violation(queue: queue, violation)) }
  func send(_ message: String) { report(.message(message)) }
}
