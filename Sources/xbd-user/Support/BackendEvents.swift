// SPDX-License-Identifier: Apache-2.0

import Platform
import Synchronization
import Xen

/// What a backend's control thread tells the thread that waits for the end.
final class BackendEvents: Sendable {
  enum Outcome {
    /// The device was taken away, or its frontend's domain is gone.
    case removed
    /// xenstore is gone, with a sentence.
    case lost(String)
  }

  private let counter: EventCounter
  private let state = Mutex<Outcome?>(nil)

  init() throws {
    counter = try EventCounter()
  }

  /// Readable once there is an outcome.
  var fileDescriptor: Int32 { counter.fileDescriptor }
  var outcome: Outcome? { state.withLock { $0 } }
  func removed() { set(.removed) }
  func lost(_ error: XenError) { set(.lost(error.message)) }

  private func set(_ outcome: Outcome) {
    state.withLock { if $0 == nil { $0 = outcome } }
    counter.signal()
  }
}
