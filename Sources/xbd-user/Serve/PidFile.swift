// SPDX-License-Identifier: Apache-2.0

import Glibc

/// A file with our process id, there for as long as the device is served.
final class PidFile {
  private let path: String

  init(_ path: String) throws {
    self.path = path
    try Console.save("\(getpid())\n", to: path, what: "the process id")
  }

  deinit {
    unlink(path)
  }
}
