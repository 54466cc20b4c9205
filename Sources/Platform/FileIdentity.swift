// SPDX-License-Identifier: Apache-2.0

internal import Glibc

/// Which file lies at a path, whatever it is called: a number that no other file has while this one exists or is open.
public struct FileIdentity: Equatable, Sendable {
  private let device: UInt64
  private let number: UInt64

  /// The file at a path, or the link if it is one.
  ///
  /// - Returns: nil when nothing can be seen there.
  public init?(_ path: String) {
    var status = stat()
    // SAFETY: a string that the call reads, and a local variable that it fills.
    guard unsafe lstat(path, &status) == 0 else { return nil }
    device = UInt64(status.st_dev)
    number = UInt64(status.st_ino)
  }
}
