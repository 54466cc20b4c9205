// SPDX-License-Identifier: Apache-2.0

import Glibc

/// A private directory (mode 0700) that goes with its owner.
final class TemporaryDirectory: Sendable {
  let path: String

  /// Makes one under `$XDG_RUNTIME_DIR`, or `/run` for root, or `/tmp`: short paths, for socket addresses.
  init() throws {
    var candidates = ["/tmp"]
    if geteuid() == 0 { candidates.insert("/run", at: 0) }
    if let runtime = getenv("XDG_RUNTIME_DIR") {
      let directory = String(cString: runtime)
      if !directory.isEmpty, directory.utf8.count < 50 { candidates.insert(directory, at: 0) }
    }
    for candidate in candidates {
      var template = Array("\(candidate)/xbd-user-XXXXXX".utf8CString)
      if mkdtemp(&template) != nil {
        path = String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
        return
      }
    }
    throw Failure("cannot make a private directory in \(candidates.joined(separator: " or "))")
  }

  deinit {
    Self.remove(path)
  }

  /// Removes a directory and what is in it; two levels are all that ever is.
  private static func remove(_ directory: String) {
    if let stream = opendir(directory) {
      while let entry = readdir(stream) {
        let name = withUnsafeBytes(of: entry.pointee.d_name) { bytes in
          String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
        }
        if name == "." || name == ".." { continue }
        let path = "\(directory)/\(name)"
        if unlink(path) != 0, errno == EISDIR || errno == EPERM { remove(path) }
      }
      closedir(stream)
    }
    rmdir(directory)
  }
}
