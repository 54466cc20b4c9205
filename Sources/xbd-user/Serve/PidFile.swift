// SPDX-License-Identifier: Apache-2.0

import Glibc

/// A file with our process id, there for as long as the device is served.
final class PidFile {
  private let path: String
  private let text = "\(getpid())\n"
  /// It says what we wrote; until then it is not ours to remove.
  private var isWritten = false

  init(_ path: String) throws {
    self.path = path
    try Console.save(text, to: path, what: "the process id")
    isWritten = true
  }

  deinit {
    // Another server may have written its own there meanwhile.
    if isWritten, isOurs { unlink(path) }
  }

  private var isOurs: Bool {
    let file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)
    guard file >= 0 else { return false }
    defer { close(file) }
    var bytes = [UInt8](repeating: 0, count: 32)
    let count = read(file, &bytes, bytes.count)
    return count > 0 && bytes[..<count].elementsEqual(text.utf8)
  }
}
