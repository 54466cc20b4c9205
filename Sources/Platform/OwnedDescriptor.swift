// SPDX-License-Identifier: Apache-2.0
//
// A file descriptor with one owner: closed when the owner goes.

internal import CXen
internal import Glibc
public import SystemPackage

/// A file descriptor that is closed when its owner lets go of it.
public struct OwnedDescriptor: ~Copyable, Sendable {
  /// The descriptor's number; valid for as long as this value lives.
  public let raw: Int32

  /// Takes ownership of an open descriptor.
  public init(_ raw: Int32) {
    self.raw = raw
  }

  deinit {
    _ = Glibc.close(raw)
  }

  /// Gives the descriptor up without closing it.
  ///
  /// - Returns: the number; the caller owns it now.
  public consuming func release() -> Int32 {
    let number = raw
    discard self
    return number
  }

  /// A second descriptor for the same open file description, close-on-exec.
  public func duplicate() throws(Errno) -> OwnedDescriptor {
    OwnedDescriptor(try retrying { fcntl(raw, F_DUPFD_CLOEXEC, 0) })
  }

  /// Makes reads and writes return `EAGAIN` instead of waiting.
  public func setNonBlocking() throws(Errno) {
    try Platform.setNonBlocking(raw)
  }
}

/// Makes reads and writes on a descriptor return `EAGAIN` instead of waiting.
public func setNonBlocking(_ descriptor: Int32) throws(Errno) {
  let flags = try retrying { cxen_get_status_flags(descriptor) }
  try retrying { cxen_set_status_flags(descriptor, flags | cxen_O_NONBLOCK) }
}
