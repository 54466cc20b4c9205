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
    let box = Unmanaged.passRetained(Start(name: name, body: body))
    var attributes = pthread_attr_t()
    pthread_attr_init(&attributes)
    defer { pthread_attr_destroy(&attributes) }
    pthread_attr_setstacksize(&attributes, stackSize)
    var thread = pthread_t()
    let code = pthread_create(
      &thread, &attributes,
      { argument in
        guard let argument else { return nil }
        let start = Unmanaged<Start>.fromOpaque(argument).takeRetainedValue()
        _ = cxen_set_thread_name(start.name)
        start.body()
        return nil
      }, box.toOpaque())
    guard code == 0 else {
      box.release()
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
