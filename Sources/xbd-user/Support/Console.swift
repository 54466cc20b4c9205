// SPDX-License-Identifier: Apache-2.0

import CXen
import Glibc

/// Text for people and programs, out at once: a pipe's reader waits for the line.
enum Console {
  /// Prints a line to stdout.
  static func line(_ text: String) { write(text + "\n", to: STDOUT_FILENO) }

  /// Prints what a command was asked for to stdout; whoever takes it from a file has to know that all of it is there.
  static func result(_ text: String) throws {
    guard write(text + "\n", to: STDOUT_FILENO) else {
      throw Failure("cannot write the result to stdout: \(String(cString: strerror(errno)))")
    }
  }

  /// Prints lines to stderr.
  static func note(_ text: String) { write(text + "\n", to: STDERR_FILENO) }

  /// Replaces the last line of a terminal on stderr; an empty one takes it away.
  static func progress(_ text: String) { write("\r\u{1B}[K\(text)", to: STDERR_FILENO) }

  /// Writes a text file, replacing what is there, if all of it can be written.
  static func save(_ text: String, to path: String, what: String) throws {
    func failure() -> Failure {
      Failure("cannot write \(what) to \(path): \(String(cString: strerror(errno)))")
    }
    var status = stat()
    let isNew = lstat(path, &status) != 0
    // A link, a device or a FIFO is written to as it stands, and so is a file in a directory that is not ours.
    if isNew || cxen_is_regular_file(status.st_mode) != 0 {
      let draft = "\(path).\(getpid())"
      // One of a process that was killed and had our number.
      unlink(draft)
      let file = open(draft, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0o644)
      if file >= 0 {
        defer { close(file) }
        let isAlike =
          isNew
          || fchown(file, status.st_uid, status.st_gid) == 0 && fchmod(file, status.st_mode & 0o777) == 0
        guard write(text, to: file) else {
          let error = failure()
          unlink(draft)
          throw error
        }
        if isAlike, rename(draft, path) == 0 { return }
        // Somebody else's, or one that is mounted there by itself: there is room for it, as the draft has shown.
        unlink(draft)
      } else if ![EACCES, EPERM, EROFS, ENAMETOOLONG].contains(errno) {
        throw failure()
      }
    }
    // A FIFO that nobody reads is not waited for.
    let file = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NONBLOCK, 0o644)
    guard file >= 0 else { throw failure() }
    defer { close(file) }
    _ = cxen_set_status_flags(file, cxen_get_status_flags(file) & ~cxen_O_NONBLOCK)
    guard write(text, to: file) else { throw failure() }
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
