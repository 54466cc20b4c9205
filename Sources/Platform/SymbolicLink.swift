// SPDX-License-Identifier: Apache-2.0
//
// Where a symbolic link leads: sysfs says with links which driver has a device.

internal import Glibc

/// What symbolic links say.
public enum SymbolicLink {
  /// The last part of a link's target.
  ///
  /// - Parameter path: the link, of a target of at most 4,095 bytes; a longer one is cut.
  /// - Returns: nil when there is no such link, or it leads nowhere.
  public static func targetName(_ path: String) -> String? {
    var target = [CChar](repeating: 0, count: 4096)
    // SAFETY: no more is written than the array has; `readlink` adds no end of its own.
    let length = unsafe readlink(path, &target, target.count - 1)
    guard length > 0 else { return nil }
    let bytes = target.prefix(length).map { UInt8(bitPattern: $0) }
    return String(decoding: bytes, as: UTF8.self).split(separator: "/").last.map(String.init)
  }
}
