// SPDX-License-Identifier: Apache-2.0

import CXen
import Glibc

/// Text for people and programs, out at once: a pipe's reader waits for the line.
enum Console {
  /// Prints a line to stdout.
  static func line(_ text: String) { write(text + "\n", to: STDOUT_FILENO) }

  /// Prints lines to stderr.
  static func note(_ text: String) { write(text + "\n", to: STDERR_FILENO) }

  /// Replaces the last line of a terminal on stderr; an empty one takes it away.
  static func progress(_ text: String) { write("\r\u{1B}[K\(text)", to: STDERR_FILENO) }

  /// Writes a text file, replacing what is there.
  static func save(_ text: String, to path: String, what: String) throws {
    // A FIFO that nobody reads is not waited for.
    let file = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NONBLOCK, 0o644)
    guard file >= 0 else {
      throw Failure("cannot write \(what) to \(path): \(String(cString: strerror(errno)))")
    }
    defer { close(file) }
    _ = cxen_set_status_flags(file, cxen_get_status_flags(file) & ~cxen_O_NONBLOCK)
    guard write(text, to: file) else {
      throw Failure("cannot write \(what) to \(path): \(String(cString: strerror(errno)))")
    }
  }

  @discardableResult
  private static func write(_ text: String, to descriptor: Int32) -> Bool {
    var bytes = Array(text.utf8)[...]
    while !bytes.isEmpty {
      let written = bytes.withUnsafeBytes { Glibc.write(descriptor, $0.baseAddress, $0.count) }
      if written < 0, errno == EINTR { continue }
      guard written > 0 else { return false }
      bytes = bytes.dropFirst(written)
    }
    return true
  }
}
