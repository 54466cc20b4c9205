// SPDX-License-Identifier: Apache-2.0
//
// A program that we run and wait for: the shell command of `--run`, the program of `loopback exec`.

import Glibc

/// A running program.
struct ChildCommand {
  private let process: pid_t

  /// Starts `/bin/sh -c command` with `$uri`, `$unixsocket` and `$exportname` set.
  init(_ command: String, variables: [(String, String)]) throws {
    try self.init(["/bin/sh", "-c", command], environment: Self.environment(adding: variables))
  }

  /// Starts a program, looked for in `$PATH`.
  ///
  /// - Parameters:
  ///   - program: its name or path, and its arguments.
  ///   - environment: all of its variables, each with its final zero.
  ///   - helperOutput: makes it a helper of ours: both of its outputs go to this descriptor, and the signals of a
  ///     terminal's keys are kept from it, as we end it ourselves.
  init(_ program: [String], environment: [[CChar]], helperOutput: Int32? = nil) throws {
    var attributes = posix_spawnattr_t()
    posix_spawnattr_init(&attributes)
    defer { posix_spawnattr_destroy(&attributes) }
    Signals.restoreInChild(&attributes)
    var actions = posix_spawn_file_actions_t()
    posix_spawn_file_actions_init(&actions)
    defer { posix_spawn_file_actions_destroy(&actions) }
    if let helperOutput {
      posix_spawn_file_actions_adddup2(&actions, helperOutput, STDOUT_FILENO)
      posix_spawn_file_actions_adddup2(&actions, helperOutput, STDERR_FILENO)
      var flags: Int16 = 0
      posix_spawnattr_getflags(&attributes, &flags)
      posix_spawnattr_setflags(&attributes, flags | Int16(POSIX_SPAWN_SETPGROUP))
    }
    var argumentPointers: [UnsafeMutablePointer<CChar>?] = program.map { strdup($0) } + [nil]
    var environmentPointers: [UnsafeMutablePointer<CChar>?] = environment.map { strdup($0) } + [nil]
    defer {
      for pointer in argumentPointers + environmentPointers { free(pointer) }
    }
    var started: pid_t = 0
    let code = posix_spawnp(
      &started, program[0], &actions, &attributes, &argumentPointers, &environmentPointers)
    guard code == 0 else {
      throw Failure("cannot run \"\(program[0])\": \(String(cString: strerror(code)))")
    }
    process = started
  }

  /// This process's environment with variables replaced or added; bytes, which need not be UTF-8.
  static func environment(adding variables: [(String, String)]) -> [[CChar]] {
    var environment: [[CChar]] = []
    var entry = environ
    while let variable = entry.pointee {
      let isReplaced = variables.contains { strncmp(variable, $0.0 + "=", $0.0.utf8.count + 1) == 0 }
      if !isReplaced {
        environment.append(Array(UnsafeBufferPointer(start: variable, count: strlen(variable) + 1)))
      }
      entry += 1
    }
    return environment + variables.map { Array("\($0.0)=\($0.1)".utf8CString) }
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

  /// Waits a while for the command to end.
  ///
  /// - Returns: as `exitStatus()`.
  func exitStatus(milliseconds: Int) -> Int32? {
    for _ in 0..<milliseconds / 10 {
      if let status = exitStatus() { return status }
      usleep(10_000)
    }
    return exitStatus()
  }

  /// Asks the program to end, and ends it when it has not done so in time.
  func end(milliseconds: Int) {
    // Again and again: one that has the same signal from somebody else and has not looked yet does not get ours.
    for _ in 0..<max(1, milliseconds / 500) {
      terminate()
      // One that is stopped would not hear of it.
      kill(process, SIGCONT)
      if exitStatus(milliseconds: min(milliseconds, 500)) != nil { return }
    }
    kill(process, SIGKILL)
    var status: Int32 = 0
    waitpid(process, &status, 0)
  }

  /// Asks the command to end.
  func terminate() { kill(process, SIGTERM) }
}
