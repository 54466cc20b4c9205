// SPDX-License-Identifier: Apache-2.0

import Glibc

/// A file with our process id, there for as long as the device is served.
final class PidFile {
  private let path: String

  init(_ path: String) throws {
    self.path = path
    guard let file = fopen(path, "we") else {
      throw Failure("cannot write the process id to \(path): \(String(cString: strerror(errno)))")
    }
    fputs("\(getpid())\n", file)
    guard fclose(file) == 0 else {
      throw Failure("cannot write the process id to \(path): \(String(cString: strerror(errno)))")
    }
  }

  deinit {
    unlink(path)
  }
}
