// SPDX-License-Identifier: Apache-2.0
//
// Places in the file system that no other test uses.

import Glibc
public import SystemPackage

/// Looked at once: other tests change the environment while this one runs, when they connect to xenstore.
private let base = getenv("TMPDIR").map { String(cString: $0) } ?? "/tmp"

/// Makes an empty directory of one test's own, mode 0700, in `$TMPDIR` or /tmp; whoever made it removes it.
///
/// - Parameter name: what it is for, a part of its name.
/// - Returns: its path.
/// - Throws: why it could not be made.
public func makeTemporaryDirectory(_ name: String) throws(Errno) -> String {
  var template = Array("\(base)/xbd-\(name)-XXXXXX".utf8CString)
  guard mkdtemp(&template) != nil else { throw Errno(rawValue: errno) }
  return String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
}

/// A path where nothing is: for a loopback host, which makes its directory itself and removes it.
///
/// - Parameter name: what it is for, a part of its name.
/// - Throws: why no place was found.
public func makeTemporaryPath(_ name: String) throws(Errno) -> String {
  let path = try makeTemporaryDirectory(name)
  rmdir(path)
  return path
}
