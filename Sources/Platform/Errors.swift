// SPDX-License-Identifier: Apache-2.0
//
// errno as a typed error. The control plane throws `Errno`; the data plane looks at return values itself.

internal import Glibc
public import SystemPackage

extension Errno {
  /// The value of the C library's `errno` for the calling thread.
  public static var current: Errno { Errno(rawValue: Glibc.errno) }
}

/// Runs a system call again for as long as it is interrupted, and turns -1 into a thrown `Errno`.
///
/// - Parameter call: the call; its result is passed through when it is not -1.
/// - Throws: the `errno` that the call left, never `EINTR`.
@discardableResult
public func retrying<Value: FixedWidthInteger & SignedInteger>(_ call: () -> Value) throws(Errno) -> Value {
  while true {
    let value = call()
    if value != -1 { return value }
    let error = Errno.current
    if error != .interrupted { throw error }
  }
}
