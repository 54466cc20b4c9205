// SPDX-License-Identifier: Apache-2.0
//
// Signals as something to read. They are blocked before the first thread starts, so that no thread is ever
// interrupted by one, and taken from a descriptor by the main thread.

import CXen
import Glibc
import Platform

/// The signals that a command waits for.
struct Signals: ~Copyable {
  private let descriptor: OwnedDescriptor

  /// Blocks the signals in this thread and every later one.
  ///
  /// Before any thread is started.
  init(_ numbers: [Int32]) throws {
    var set = sigset_t()
    sigemptyset(&set)
    for number in numbers { sigaddset(&set, number) }
    pthread_sigmask(SIG_BLOCK, &set, nil)
    // A client or a pipe that went away shows in the result of the write.
    signal(SIGPIPE, SIG_IGN)
    let raw = signalfd(-1, &set, Int32(SFD_CLOEXEC | SFD_NONBLOCK))
    guard raw >= 0 else { throw Failure("cannot wait for signals: \(String(cString: strerror(errno)))") }
    descriptor = OwnedDescriptor(raw)
  }

  /// Readable while a signal waits.
  var fileDescriptor: Int32 { descriptor.raw }

  /// Takes a signal that has come.
  ///
  /// - Returns: its number; nil when none waits.
  func next() -> Int32? {
    var information = signalfd_siginfo()
    let size = MemoryLayout<signalfd_siginfo>.size
    guard read(descriptor.raw, &information, size) == size else { return nil }
    return Int32(information.ssi_signo)
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
