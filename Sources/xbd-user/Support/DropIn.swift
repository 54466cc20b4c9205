// SPDX-License-Identifier: Apache-2.0
//
// Where libxenloopback.so is, and the environment in which a program meets a loopback host instead of Xen.

import Glibc
import XenLoopback

/// The drop-in for Xen's libraries.
enum DropIn {
  static let name = "libxenloopback.so"

  /// The library's path: `XBD_LOOPBACK_LIBRARY`, beside the executable, or in the lib beside its bin.
  static func library() throws -> String {
    if let given = variable("XBD_LOOPBACK_LIBRARY") {
      guard access(given, R_OK) == 0 else {
        throw Failure("XBD_LOOPBACK_LIBRARY names \(given), which cannot be read")
      }
      return absolute(given)
    }
    var own = [CChar](repeating: 0, count: Int(PATH_MAX))
    let length = readlink("/proc/self/exe", &own, own.count - 1)
    let path = String(decoding: own.prefix(max(0, length)).map { UInt8(bitPattern: $0) }, as: UTF8.self)
    let directory = path.lastIndex(of: "/").map { String(path[..<$0]) } ?? "."
    let candidates = ["\(directory)/\(name)", "\(directory)/../lib/\(name)"]
    guard let found = candidates.first(where: { access($0, R_OK) == 0 }) else {
      throw Failure(
        "\(name) is neither in \(directory) nor in the lib beside it; build it with \"swift build --product "
          + "xenloopback\" or name it with XBD_LOOPBACK_LIBRARY")
    }
    return absolute(found)
  }

  /// The variables that make a program a process of a domain.
  static func variables(_ library: String, _ place: LoopbackDomain) -> [(String, String)] {
    let preloaded = variable("LD_PRELOAD").map { ":" + $0 } ?? ""
    return [
      ("LD_PRELOAD", library + preloaded), ("XENSTORED_PATH", absolute(place.xenStoreSocket)),
      ("XBD_LOOPBACK", absolute(place.directory)), ("XBD_LOOPBACK_DOMAIN", "\(place.id)"),
    ]
  }

  /// This process's environment with those variables in it.
  static func environment(_ library: String, _ place: LoopbackDomain) -> [[CChar]] {
    ChildCommand.environment(adding: variables(library, place))
  }

  /// Becomes the program.
  ///
  /// - Returns: why that was not possible; nothing otherwise.
  static func replaceProcess(_ program: [String], _ variables: [(String, String)]) -> Failure {
    var arguments: [UnsafeMutablePointer<CChar>?] = program.map { strdup($0) } + [nil]
    for (name, value) in variables { setenv(name, value, 1) }
    execvp(program[0], &arguments)
    return Failure("cannot run \"\(program[0])\": \(String(cString: strerror(errno)))")
  }

  private static func variable(_ name: String) -> String? {
    guard let value = getenv(name) else { return nil }
    let text = String(cString: value)
    return text.isEmpty ? nil : text
  }

  private static func absolute(_ path: String) -> String {
    guard let resolved = realpath(path, nil) else { return path }
    defer { free(resolved) }
    return String(cString: resolved)
  }
}
