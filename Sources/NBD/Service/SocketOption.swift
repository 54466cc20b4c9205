// SPDX-License-Identifier: Apache-2.0
//
// Options of sockets whose value is a number, which are all that this module has to do with.

internal import Glibc

/// Sets a number among a socket's options.
///
/// - Returns: whether the kernel took it.
@discardableResult
func setOption(_ descriptor: Int32, _ level: Int32, _ name: Int32, to value: Int32) -> Bool {
  // SAFETY: the kernel reads a copy of the number, and as many bytes as it has.
  unsafe withUnsafeBytes(of: value) { bytes in
    unsafe setsockopt(descriptor, level, name, bytes.baseAddress, socklen_t(bytes.count)) == 0
  }
}

/// Asks for a number among a socket's options.
///
/// - Returns: nil for what is no socket, or has no such option.
func option(_ descriptor: Int32, _ level: Int32, _ name: Int32) -> Int32? {
  var value: Int32 = 0
  var length = socklen_t(MemoryLayout<Int32>.size)
  // SAFETY: the kernel writes to two local variables, no more bytes than the second says.
  guard unsafe getsockopt(descriptor, level, name, &value, &length) == 0 else { return nil }
  return value
}
