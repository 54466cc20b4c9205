// SPDX-License-Identifier: Apache-2.0
//
// `XENSTORED_PATH`: libxenstore takes the path of xenstore's socket from the environment, and from nowhere else.

internal import Glibc
internal import Synchronization

/// The one variable, and the lock under which this module uses it: two connections do not mix their paths up, and nobody
/// is shown a path that is there for the moment of connecting only.
enum LibXenStoreEnvironment {
  private static let lock = Mutex(())
  private static let variable = "XENSTORED_PATH"

  /// What the process was started with; nil leaves the choice to libxenstore.
  static var socket: String? { lock.withLock { _ in current } }

  /// Runs `body`, which connects, with the variable as it is.
  static func withSocket<Result: Sendable>(_ body: () -> Result) -> Result {
    lock.withLock { _ in body() }
  }

  /// Runs `body`, which connects, with another path.
  static func withSocket<Result: Sendable>(at path: String, _ body: () -> Result) -> Result {
    lock.withLock { _ in
      let previous = current
      set(path)
      defer { set(previous) }
      return body()
    }
  }

  // Only with the lock held.
  private static var current: String? {
    // SAFETY: copied before anyone under the lock changes the variable. Other threads that change other variables at the same
    // time are beyond this lock, as C has it; this program does that while it starts, before it has other threads.
    unsafe getenv(variable).map { unsafe String(cString: $0) }
  }

  // Only with the lock held.
  private static func set(_ path: String?) {
    // SAFETY: the C library copies both strings; see `current` for other threads.
    if let path { unsafe _ = setenv(variable, path, 1) } else { unsafe _ = unsetenv(variable) }
  }
}
