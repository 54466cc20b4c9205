// SPDX-License-Identifier: Apache-2.0
//
// Signals as something to read. They are blocked before the first thread starts, so that no thread is ever
// interrupted by one, and taken from a descriptor by the main thread.

import ArgumentParser
import CXen
import Glibc
import Platform

/// The signals that a command waits for.
struct Signals: ~Copyable {
  private let descriptor: OwnedDescriptor
  private let end: OwnedDescriptor

  /// Blocks the signals in this thread and every later one.
  ///
  /// Before any thread is started.
  init(_ numbers: [Int32]) throws {
    var set = sigset_t()
    var endings = sigset_t()
    sigemptyset(&set)
    sigemptyset(&endings)
    // A blocked signal is delivered even where it is ignored, so what nohup or a shell's "&" had us ignore stays out.
    for number in numbers where number == SIGTERM || number == SIGCHLD || !Self.isIgnored(number) {
      sigaddset(&set, number)
      if Self.endings.contains(number) { sigaddset(&endings, number) }
      // An ignored SIGCHLD has the system take children away before anybody asked for their status.
      if number == SIGCHLD { signal(SIGCHLD, SIG_DFL) }
    }
    pthread_sigmask(SIG_BLOCK, &set, nil)
    // A client or a pipe that went away shows in the result of the write.
    signal(SIGPIPE, SIG_IGN)
    let (all, some) = (try Self.open(&set), try Self.open(&endings))
    descriptor = OwnedDescriptor(all)
    end = OwnedDescriptor(some)
  }

  /// What asks a program to end.
  private static let endings = [SIGTERM, SIGINT, SIGHUP]

  private static func isIgnored(_ number: Int32) -> Bool {
    var action = sigaction()
    guard sigaction(number, nil, &action) == 0 else { return false }
    return unsafeBitCast(action.__sigaction_handler.sa_handler, to: Int.self)
      == unsafeBitCast(SIG_IGN, to: Int.self)
  }

  private static func open(_ set: inout sigset_t) throws -> Int32 {
    let raw = signalfd(-1, &set, Int32(SFD_CLOEXEC | SFD_NONBLOCK))
    guard raw >= 0 else { throw Failure("cannot wait for signals: \(String(cString: strerror(errno)))") }
    return raw
  }

  /// Readable while a signal waits.
  var fileDescriptor: Int32 { descriptor.raw }
  /// Readable while a signal waits that asks the program to end; not to be read.
  var endDescriptor: Int32 { end.raw }

  /// Takes signals until one asks the program to end.
  ///
  /// - Returns: what a program ends with that was told so before it had begun; nil when none has come.
  func nextEnd() -> ExitCode? {
    while let signal = next() {
      if Self.endings.contains(signal) { return ExitCode(128 + signal) }
    }
    return nil
  }

  /// Takes a signal that has come.
  ///
  /// - Returns: its number; nil when none waits.
  func next() -> Int32? { nextWithSender()?.number }

  /// Takes a signal that has come, and who sent it: a process, or 0 for the kernel and what is not of this namespace.
  func nextWithSender() -> (number: Int32, sender: pid_t)? {
    var information = signalfd_siginfo()
    let size = MemoryLayout<signalfd_siginfo>.size
    guard read(descriptor.raw, &information, size) == size else { return nil }
    return (Int32(information.ssi_signo), pid_t(bitPattern: information.ssi_pid))
  }

  /// Lets a child have the signals as every program expects them.
  static func restoreInChild(_ attributes: inout posix_spawnattr_t) {
    var none = sigset_t()
    sigemptyset(&none)
    posix_spawnattr_setsigmask(&attributes, &none)
    var defaults = sigset_t()
    sigemptyset(&defaults)
    sigaddset(&defaults, SIGPIPE)
    posix_spawnattr_setsigdefault(&attributes, &defaults)
    posix_spawnattr_setflags(&attributes, Int16(POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF))
  }
}
