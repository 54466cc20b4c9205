// SPDX-License-Identifier: Apache-2.0
//
// A thread of our own. Queues and hosts run to completion on one; Swift's executors are not in the way.

internal import CXen
internal import Glibc
internal import Synchronization
public import SystemPackage

/// A POSIX thread that runs one closure and is joined.
public final class DedicatedThread: Sendable {
  private let handle: pthread_t
  private let joined = Mutex(false)

  /// Starts a thread.
  ///
  /// - Parameters:
  ///   - name: shown by `ps` and debuggers; cut at 15 bytes.
  ///   - stackSize: in bytes; the default is enough for everything here.
  ///   - body: what it runs.
  /// - Throws: `Errno` when the system has no thread to give.
  public init(
    name: String, stackSize: Int = 512 << 10, _ body: sending @escaping () -> Void
  ) throws(Errno) {
    // SAFETY: the reference is given up once: by the new thread, or below when there is none. pthread reads and
    // writes the local attributes alone.
    let box = unsafe Unmanaged.passRetained(Start(name: name, body: body))
    var attributes = pthread_attr_t()
    unsafe pthread_attr_init(&attributes)
    defer { unsafe pthread_attr_destroy(&attributes) }
    unsafe pthread_attr_setstacksize(&attributes, stackSize)
    var thread = pthread_t()
    let code = unsafe pthread_create(
      &thread, &attributes,
      { argument in
        guard let argument = unsafe argument else { return nil }
        // SAFETY: the argument is the box that `pthread_create` was given.
        let start = unsafe Unmanaged<Start>.fromOpaque(argument).takeRetainedValue()
        _ = unsafe cxen_set_thread_name(start.name)
        ThreadScheduling.begin()
        start.body()
        return nil
      }, unsafe box.toOpaque())
    guard code == 0 else {
      unsafe box.release()
      throw Errno(rawValue: code)
    }
    handle = thread
  }

  /// Waits until the closure has returned.
  ///
  /// A second call returns at once.
  public func join() {
    joined.withLock { done in
      if done { return }
      pthread_join(handle, nil)
      done = true
    }
  }

  deinit {
    joined.withLock { done in
      if !done { pthread_detach(handle) }
    }
  }

  private final class Start {
    let name: String
    let body: () -> Void
    init(name: String, body: @escaping () -> Void) {
      self.name = name
      self.body = body
    }
  }
}
