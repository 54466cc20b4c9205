// SPDX-License-Identifier: Apache-2.0
//
// An image as QEMU's xen-block opens it: format and path, the `params` node that libxl writes, the command line, and
// the lock that QEMU leaves out (it turns its own off for Xen's disks).

import Glibc
import Platform
import XbdBack

/// A disk that QEMU serves.
final class QEMUDisk {
  /// QEMU with nothing but a Xen machine's backends, as Debian's qemu-system-xen installs it.
  static let program = "/usr/libexec/xen-qemu-system-i386"

  /// QEMU's name for the format.
  let format: String
  /// The file, or whatever the format's driver wants to read there.
  let path: String
  private let isReadOnly: Bool
  private let outlivesQEMU: Bool
  private let storage: (any Storage)?
  private let lock: OwnedDescriptor?

  /// Finds out the format, creates the image if it is to be, and locks it.
  ///
  /// - Parameters:
  ///   - image: a path, or FORMAT:PATH.
  ///   - locking: whether the image is kept locked against a second writer for as long as this value lives.
  ///   - outlivesQEMU: whether a QEMU that is killed must not take along what it has answered.
  init(
    _ image: String, _ options: StorageArguments, readOnly: Bool, locking: Bool, outlivesQEMU: Bool = false
  ) throws {
    isReadOnly = readOnly
    self.outlivesQEMU = outlivesQEMU
    for kind in ["memory:", "null:"] where image.hasPrefix(kind) {
      throw Failure("QEMU's backend serves image files; \"\(image)\" is for the reference backend")
    }
    if Self.namesFormat(image), let colon = image.firstIndex(of: ":") {
      try Self.refuseSize(options, of: image)
      format = String(image[..<colon])
      path = Self.absolute(String(image[image.index(after: colon)...]))
      storage = nil
      lock = locking ? try Self.claim(path, readOnly: readOnly) : nil
      return
    }
    if try Self.isQcow2(image) {
      guard options.size == nil else { throw Failure("--size is for raw images, and \(image) is a qcow2") }
      // QEMU would open whatever its header names as a backing file.
      guard image.hasSuffix(".qcow2") else {
        throw Failure(
          "\(image) begins as a qcow2 does, which a client may have written into a raw disk: "
            + "write qcow2:\(image) or raw:\(image)")
      }
      format = "qcow2"
      storage = nil
      lock = locking ? try Self.claim(image, readOnly: readOnly) : nil
    } else {
      // What the reference backend refuses is no disk for QEMU either.
      let opened = try options.open(image, readOnly: readOnly)
      format = "raw"
      storage = locking ? opened : nil
      lock = nil
    }
    path = Self.absolute(image)
  }

  /// The node `params` of the backend's directory.
  var parameters: String { "\(format):\(path)" }

  /// Whether QEMU attaches the disk by itself, from its command line, because libxl's nodes cannot say what is wanted.
  ///
  /// What QEMU 7.2 makes of a `mode` of "r" it then fails to open: only the file below the format is read-only. And
  /// formats keep metadata in QEMU's memory until the next flush, writes that were answered with it; the kernel keeps
  /// those of a raw file.
  var isAttachedByQEMU: Bool { isReadOnly || (outlivesQEMU && format != "raw") }

  /// The command that serves the disks of a domain.
  ///
  /// - Parameter vdev: the disk's name, for QEMU to attach it by.
  func command(domain: UInt16, vdev: String) -> [String] {
    var words = [
      Self.program, "-M", "xenpv", "-xen-attach", "-xen-domid", "\(domain)", "-nographic", "-nodefaults",
      "-no-user-config", "-monitor", "none", "-serial", "none", "-parallel", "none",
    ]
    if isAttachedByQEMU {
      let access = isReadOnly ? "read-only=on" : "discard=unmap"
      let name = path.split(separator: ",", omittingEmptySubsequences: false).joined(separator: ",,")
      words += [
        "-blockdev", "driver=file,filename=\(name),node-name=file,\(access),locking=off",
        "-blockdev", "driver=\(format),file=file,node-name=disk,\(access)",
        "-device", "xen-disk,drive=disk,vdev=\(vdev)" + (outlivesQEMU ? ",write-cache=off" : ""),
      ]
    }
    return words
  }

  /// Whether an image is written FORMAT:PATH; a colon behind a slash is the path's.
  static func namesFormat(_ image: String) -> Bool {
    image.firstIndex(of: ":").map { !image[..<$0].contains("/") } ?? false
  }

  /// Only a path can be created: it is a raw image then.
  static func refuseSize(_ options: StorageArguments, of image: String) throws {
    guard options.size == nil else { throw Failure("--size creates a raw image at a path, not \(image)") }
  }

  private static func isQcow2(_ image: String) throws -> Bool {
    let file = open(image, O_RDONLY | O_CLOEXEC | O_NONBLOCK)
    // Whoever opens it next says why it cannot be opened.
    guard file >= 0 else { return false }
    defer { close(file) }
    var magic: [UInt8] = [0, 0, 0, 0]
    return read(file, &magic, 4) == 4 && magic == [0x51, 0x46, 0x49, 0xFB]
  }

  /// What is no file here is left to QEMU.
  private static func claim(_ path: String, readOnly: Bool) throws -> OwnedDescriptor? {
    try FileStorage.claim(path, readOnly: readOnly, patience: StorageArguments.lockPatience)
  }

  private static func absolute(_ path: String) -> String {
    guard let resolved = realpath(path, nil) else { return path }
    defer { free(resolved) }
    return String(cString: resolved)
  }
}
