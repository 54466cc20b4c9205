// SPDX-License-Identifier: Apache-2.0

import Synchronization

/// A value behind a lock, for tests.
final class Guarded<Value: Sendable>: Sendable {
  private let mutex: Mutex<Value>
  init(_ value: Value) { mutex = Mutex(value) }
  func with<Result: Sendable>(_ body: (inout Value) -> Result) -> Result {
    mutex.withLock { state in body(&state) }
  }
}
