// SPDX-License-Identifier: Apache-2.0

import Glibc
public import SystemPackage

/// Two connected stream sockets, close-on-exec: other tests start programs meanwhile.
///
/// - Returns: their numbers, which the caller owns.
/// - Throws: why there are none.
public func makeSocketPair() throws(Errno) -> (Int32, Int32) {
  var pair: [Int32] = [-1, -1]
  guard socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0, &pair) == 0 else {
    throw Errno(rawValue: errno)
  }
  return (pair[0], pair[1])
}
