// SPDX-License-Identifier: Apache-2.0
//
// How other threads speak to a worker: a short list under a lock, a flag that costs the worker one load a turn,
// and a descriptor that ends its sleep.

internal import Platform
internal import Synchronization
internal import SystemPackage

/// What a worker can be told.
enum WorkerMessage: Sendable {
  /// Serve this connected socket; the worker owns it now.
  case adopt(Int32)
  /// Finish what is in flight until this moment, then close everything and end.
  case stop(deadline: UInt64)
}

/// The messages to one worker: control only, never a request.
final class WorkerMailbox: Sendable {
  private struct Contents {
    var messages: [WorkerMessage] = []
    var isClosed = false
  }

  private let contents = Mutex(Contents())
  private let hasMessages = Atomic(false)
  private let counter: EventCounter

  init() throws(Errno) {
    counter = try EventCounter()
  }

  /// Readable while there are messages.
  var fileDescriptor: Int32 { counter.fileDescriptor }

  /// Leaves a message and wakes the worker.
  ///
  /// - Returns: false when the worker has ended; the message was not taken.
  func post(_ message: WorkerMessage) -> Bool {
    let taken = contents.withLock { contents in
      guard !contents.isClosed else { return false }
      contents.messages.append(message)
      return true
    }
    guard taken else { return false }
    counter.signal()
    // Pairs with the .acquiring load in `isWaiting`. After the signal, so that whoever sees the flag drains it.
    hasMessages.store(true, ordering: .releasing)
    return true
  }

  /// Whether there may be messages.
  var isWaiting: Bool {
    @inline(__always) get { hasMessages.load(ordering: .acquiring) }
  }

  /// Takes all messages.
  func takeAll() -> [WorkerMessage] {
    // Before the list is looked at: a message that comes later sets them again.
    hasMessages.store(false, ordering: .relaxed)
    counter.drain()
    return contents.withLock { contents in
      let messages = contents.messages
      contents.messages.removeAll(keepingCapacity: true)
      return messages
    }
  }

  /// Takes no more messages.
  ///
  /// - Returns: those that nobody has acted on.
  func close() -> [WorkerMessage] {
    contents.withLock { contents in
      contents.isClosed = true
      let messages = contents.messages
      contents.messages.removeAll()
      return messages
    }
  }
}
