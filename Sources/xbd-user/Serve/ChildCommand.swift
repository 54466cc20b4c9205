// SPDX-License-Identifier: Apache-2.0
//
// `--run`: a shell command that uses the service; when it ends, so do we.

import Glibc

/// A running shell command.
struct ChildCommand {
  private let process: pid_t

  /// Starts `/bin/sh -c command` with `$uri`, `$unixsocket` and `$exportname` set.
  init(_ command: String, variables: [(String, String)]) throws {
    var environment: [String] = []
    var entry = environ
    while let variable = entry.pointee {
      let text = String(cString: variable)
      if !variables.contains(where: { text.hasPrefix($0.0 + "=") }) { environment.append(text) }
      entry += 1
    }
    environment += variables.map { "\($0.0)=\($0.1)" }
    var attributes = posix_spawnattr_t()
    posix_spawnattr_init(&attributes)
    defer { posix_spawnattr_destroy(&attributes) }
    Signals.restoreInChild(&attributes)
    var argumentPointers: [UnsafeMutablePointer<CChar>?] = []
    for argument in ["/bin/sh", "-c", command] { argumentPointers.append(strdup(argument)) }
    argumentPointers.append(nil)
    var environmentPointers: [UnsafeMutablePointer<CChar>?] = []
    for variable in environment { environmentPointers.append(strdup(variable)) }
    environmentPointers.append(nil)
    defer {
      for pointer in argumentPointers + environmentPointers { free(pointer) }
    }
    var started: pid_t = 0
    let code = posix_spawn(&started, "/bin/sh", nil, &attributes, &argumentPointers, &environmentPointers)
    guard code == 0 else { throw Failure("cannot run \"\(command)\": \(String(cString: strerror(code)))") }
    process = started
  }

  /// Looks whether the command has ended.
  ///
  /// - Returns: its exit status as a shell gives it, 128 + n for signal n; nil while it runs.
  func exitStatus() -> Int32? {
    var status: Int32 = 0
    guard waitpid(process, &status, WNOHANG) == process else { return nil }
    let signal = status & 0x7f
    return signal == 0 ? (status >> 8) & 0xff : 128 + signal
  }

  /// Asks the command to end.
  func terminate() { kill(process, SIGTERM) }
}
