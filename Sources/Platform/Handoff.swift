// SPDX-License-Identifier: Apache-2.0
//
// One value from one thread to another that waits for it.

internal import Glibc
internal import Synchronization
public import SystemPackage

/// A place for one value; the first that is put in stays.
public final class Handoff<Value: Sendable>: Sendable {
  private let value = Mutex<Value?>(nil)
  private let arrived: EventCounter

  /// An empty place.
  public init() throws(Errno) {
    arrived = try EventCounter()
  }

  /// Puts a value in, unless there is one, and wakes those who wait.
  public func put(_ new: Value) {
    value.withLock { if $0 == nil { $0 = new } }
    arrived.signal()
  }

  /// The value, if it is there.
  public var current: Value? { value.withLock { $0 } }

  /// Waits for the value.
  ///
  /// - Parameter milliseconds: the longest wait; nil waits for ever.
  /// - Returns: nil after the longest wait.
  public func wait(milliseconds: Int? = nil) -> Value? {
    let deadline = milliseconds.map { MonotonicClock.nanoseconds() &+ UInt64($0) * 1_000_000 }
    while true {
      if let value = current { return value }
      var remaining: Int32 = -1
      if let deadline {
        let now = MonotonicClock.nanoseconds()
        if now >= deadline { return nil }
        remaining = Int32(clamping: (deadline - now) / 1_000_000 + 1)
      }
      var descriptor = pollfd(fd: arrived.fileDescriptor, events: Int16(POLLIN), revents: 0)
      // SAFETY: one element, a local variable.
      _ = unsafe Glibc.poll(&descriptor, 1, remaining)
    }
  }
}
