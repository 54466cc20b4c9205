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

  /// Writes a text file, replacing what is there, if all of it can be written; what is not ours to replace is written in place.
  static func save(_ text: String, to path: String, what: String) throws {
    func failure() -> Failure {
      Failure("cannot write \(what) to \(path): \(String(cString: strerror(errno)))")
    }
    var status = stat()
    let isNew = lstat(path, &status) != 0
    let isRegular = !isNew && cxen_is_regular_file(status.st_mode) != 0
    if isNew || isRegular {
      let draft = "\(path).xbd-user-\(getpid())"
      // One of a process that was killed and had our number.
      unlink(draft)
      let file = open(draft, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0o644)
      if file >= 0 {
        defer { close(file) }
        // Somebody else's stays theirs, if we may write it at all.
        let isTheirs =
          isRegular && fchown(file, status.st_uid, status.st_gid) != 0 && access(path, W_OK) == 0
        if isRegular { fchmod(file, status.st_mode & 0o777) }
        guard write(text, to: file) else {
          let error = failure()
          unlink(draft)
          throw error
        }
        if !isTheirs, rename(draft, path) == 0 { return }
        // One may be mounted there by itself.
        unlink(draft)
      } else if ![EACCES, EPERM, EROFS, ENAMETOOLONG].contains(errno) {
        throw failure()
      }
    }
    // A FIFO that nobody reads is not waited for. O_CREAT is refused for others' files in directories like /tmp.
    let creation = isRegular ? 0 : O_CREAT
    let file = open(path, O_WRONLY | creation | O_TRUNC | O_CLOEXEC | O_NONBLOCK, 0o644)
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
