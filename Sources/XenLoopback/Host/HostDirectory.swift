// SPDX-License-Identifier: Apache-2.0
//
// A host's directory: private, locked while the host lives, cleared of what a dead host left.

internal import CXen
internal import Glibc
internal import Platform
internal import SystemPackage
internal import Xen

/// The paths of a host.
enum LoopbackPaths {
  static func control(_ directory: String) -> String { directory + "/control.sock" }
  static func domain(_ directory: String, _ number: UInt16) -> String { "\(directory)/dom\(number)" }
  static func store(_ directory: String, _ number: UInt16) -> String {
    domain(directory, number) + "/xenstored.sock"
  }
  static func lock(_ directory: String) -> String { directory + "/host.lock" }
}

/// A directory that this process's host holds.
final class HostDirectory {
  let path: String
  private let lock: OwnedDescriptor
  private let isOurs: Bool

  /// Creates or takes over a directory.
  init(_ given: String) throws(XenError) {
    path = given.count > 1 && given.hasSuffix("/") ? String(given.dropLast()) : given
    // The longest path under it has to fit into a socket's address.
    guard LoopbackPaths.store(path, 32751).utf8.count <= 107 else {
      throw XenError(
        .invalid, "the loopback directory \(path) is too long for the sockets in it; choose a shorter path")
    }
    // SAFETY of the calls below that take a path: a string that the call reads, and locals that it fills.
    isOurs = unsafe mkdir(path, 0o700) == 0
    if !isOurs {
      guard Errno.current == .fileExists else {
        throw XenError(errno: .current, "cannot create the loopback directory \(path)")
      }
      var status = stat()
      guard unsafe lstat(path, &status) == 0, status.st_mode & S_IFMT == S_IFDIR else {
        throw XenError(.invalid, "\(path) is not a directory; a loopback host needs one of its own")
      }
      guard status.st_uid == geteuid(), status.st_mode & 0o077 == 0 else {
        throw XenError(
          .denied,
          "the loopback directory \(path) is open to other users; run `chmod 700 \(path)` or choose another")
      }
    }
    // SAFETY: as above.
    let file = unsafe open(LoopbackPaths.lock(path), O_RDWR | O_CREAT | cxen_O_CLOEXEC, 0o600)
    guard file >= 0 else { throw XenError(errno: .current, "cannot open \(LoopbackPaths.lock(path))") }
    lock = OwnedDescriptor(file)
    guard cxen_lock_whole_file(file, 1) == 0 else {
      throw XenError(
        .denied,
        "a loopback host (process \(Self.readNumber(file))) is running in \(path); join it or choose another directory"
      )
    }
    // The host before may have removed the file between our opening and locking it.
    var ours = stat()
    var there = stat()
    // SAFETY: as above.
    guard unsafe fstat(file, &ours) == 0, unsafe stat(LoopbackPaths.lock(path), &there) == 0,
      ours.st_ino == there.st_ino
    else {
      throw XenError(.denied, "a loopback host in \(path) is just ending; start again")
    }
    Self.writeNumber(file)
    removeLeftovers()
  }

  var controlPath: String { LoopbackPaths.control(path) }

  func listen(_ path: String) throws(Errno) -> OwnedDescriptor {
    do {
      return try UnixSocket.listen(path: path)
    } catch .system(let errno) {
      throw errno
    } catch .inUse {
      throw .addressInUse
    } catch .notASocket {
      throw .fileExists
    } catch {
      throw .fileNameTooLong
    }
  }

  /// Makes a domain's directory.
  ///
  /// - Returns: where its xenstore socket goes.
  func makeStorePath(_ domain: UInt16) throws(Errno) -> String {
    // SAFETY: a string that the call reads.
    if unsafe mkdir(LoopbackPaths.domain(path, domain), 0o700) != 0, Errno.current != .fileExists {
      throw .current
    }
    return LoopbackPaths.store(path, domain)
  }

  func removeStore(_ domain: UInt16) {
    // SAFETY: strings that the calls read.
    _ = unsafe unlink(LoopbackPaths.store(path, domain))
    _ = unsafe rmdir(LoopbackPaths.domain(path, domain))
  }

  /// Removes what the host made; the directory too, if it made that.
  func remove() {
    removeLeftovers()
    // SAFETY: strings that the calls read.
    _ = unsafe unlink(LoopbackPaths.lock(path))
    if isOurs { _ = unsafe rmdir(path) }
  }

  private func removeLeftovers() {
    // SAFETY: a stream that is closed at the end; an entry is used before the next is read, and its name ends in NUL
    // within its 256 bytes (readdir(3)).
    _ = unsafe unlink(controlPath)
    guard let directory = unsafe opendir(path) else { return }
    defer { unsafe closedir(directory) }
    while let entry = unsafe readdir(directory) {
      let name = unsafe withUnsafePointer(to: &entry.pointee.d_name) { pointer in
        unsafe pointer.withMemoryRebound(to: CChar.self, capacity: 256) { unsafe String(cString: $0) }
      }
      if name.hasPrefix("dom"), let number = UInt16(name.dropFirst(3)) { removeStore(number) }
    }
  }

  private static func readNumber(_ file: Int32) -> String {
    var bytes = [UInt8](repeating: 0, count: 16)
    // SAFETY: the call fills at most the array's 16 bytes.
    let got = unsafe pread(file, &bytes, 16, 0)
    let digits = bytes[..<max(0, got)].prefix { $0 >= 48 && $0 <= 57 }
    return digits.isEmpty ? "unknown" : String(decoding: digits, as: UTF8.self)
  }

  private static func writeNumber(_ file: Int32) {
    _ = ftruncate(file, 0)
    let text = Array("\(getpid())\n".utf8)
    // SAFETY: an array with its length.
    _ = unsafe pwrite(file, text, text.count, 0)
  }
}
