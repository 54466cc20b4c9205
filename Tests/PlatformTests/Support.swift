// SPDX-License-Identifier: Apache-2.0
//
// What several of these suites need: a patient wait, a private directory, a descriptor's state.

import TestSupport
import CXen
import Glibc
import Platform
import SystemPackage
import Testing

extension EventLoop {
  /// Waits up to 20 s for an event, however busy the machine is.
  func waitPatiently() -> Int {
    for _ in 0..<20 {
      let count = wait(milliseconds: 1000)
      if count > 0 { return count }
    }
    return 0
  }
}

/// A second descriptor, owned by the caller.
func duplicate(_ descriptor: Int32) throws -> OwnedDescriptor {
  OwnedDescriptor(try retrying { fcntl(descriptor, F_DUPFD_CLOEXEC, 0) })
}

/// Whether a number names an open descriptor.
func isOpen(_ descriptor: Int32) -> Bool { fcntl(descriptor, F_GETFD) != -1 }

/// A directory of one test's own, removed with everything in it.
final class TemporaryDirectory {
  let path: String

  init() throws {
    path = try makeTemporaryDirectory("test")
  }

  func file(_ name: String) -> String { "\(path)/\(name)" }

  deinit {
    if let directory = opendir(path) {
      while let entry = readdir(directory) {
        let name = withUnsafePointer(to: &entry.pointee.d_name) { pointer in
          pointer.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
        }
        if name != ".", name != ".." { unlink(file(name)) }
      }
      closedir(directory)
    }
    rmdir(path)
  }
}
