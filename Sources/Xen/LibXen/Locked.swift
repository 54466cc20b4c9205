// SPDX-License-Identifier: Apache-2.0
//
// What a library has open, and the lock that the library asks for.

internal import Synchronization

/// What one thread uses at a time.
///
/// About 16 ns uncontended, beside the system call that every use makes.
struct Locked<Value: ~Copyable>: ~Copyable, Sendable {
  private let value: Mutex<Moved<Value>>

  init(_ value: consuming Value) {
    self.value = Mutex(Moved(value))
  }

  borrowing func with<Result>(_ body: (inout Value) -> Result) -> Result {
    value.withLock { Moved(body(&$0.value)) }.value
  }
}

/// What goes into the lock, and what comes out of it, without being called Sendable by the compiler.
///
/// The value stays within, because `body` is only lent it; a result is its caller's alone. (Nested in `Locked` and
/// private, it makes Swift 6.3.1 emit a module that LLVM refuses.)
struct Moved<Content: ~Copyable>: ~Copyable, @unchecked Sendable {
  var value: Content
  init(_ value: consuming Content) { self.value = value }
}
