// SPDX-License-Identifier: Apache-2.0
//
// A host of the loopback: one thread that serves xenstore and the control socket of a directory. It runs inside any
// process, or alone as `xbd-user loopback`; nothing about its domains depends on which.

internal import CXen
internal import Glibc
internal import Platform
internal import Synchronization
internal import SystemPackage
public import Xen

/// A machine with Xen on it, made of a directory and a thread.
///
/// The directory holds `control.sock`, through which processes join domains, `domN/xenstored.sock` for each domain,
/// and `host.lock`, which is locked for as long as the host lives. Domain 0 exists from the beginning.
public final class LoopbackHost: Sendable {
  /// Where the host is.
  public let directory: String
  private let thread: DedicatedThread
  private let wake: StopSignal
  private let stopped = Guarded(false)

  /// Starts a host in a directory, which is created with mode 0700 if need be.
  ///
  /// What a dead host left in the directory is replaced.
  ///
  /// - Parameters:
  ///   - directory: short enough for `domN/xenstored.sock` under it to fit in 107 bytes.
  ///   - pageLimit: gntalloc's limit for domain 0, in pages.
  ///   - lostPeer: called on the host's thread when a process has ended, or left, with event channels bound to
  ///     another domain, which nobody on a real Xen would tell: whose process it was, and that other domain.
  /// - Throws: `.denied` when a live host is there already or the directory is not private; `.invalid` for a path
  ///   that cannot be; `.system` otherwise.
  public init(
    directory: String, pageLimit: Int = LoopbackDefaults.pageLimit,
    lostPeer: @escaping @Sendable (_ ended: DomainID, _ peer: DomainID) -> Void = { _, _ in }
  ) throws(XenError) {
    let files = try HostDirectory(directory)
    self.directory = files.path
    let state: HostState
    do throws(Errno) {
      state = try HostState(files: files)
    } catch {
      throw XenError(errno: error, "cannot start a loopback host in \(directory)")
    }
    state.onLostPeer { lostPeer(DomainID($0), DomainID($1)) }
    try state.open(pageLimit: pageLimit)
    wake = state.stop
    // SAFETY: the state is made here and then used by the thread alone.
    nonisolated(unsafe) let handed = state
    do {
      // Removing a deep subtree of xenstore recurses once for each level; only what is touched takes memory.
      thread = try DedicatedThread(name: "xen-loopback", stackSize: 8 << 20) { unsafe handed.run() }
    } catch {
      throw XenError(errno: error, "cannot start a loopback host in \(directory)")
    }
  }

  /// Whether a host has its control socket in a directory, or had until it was killed.
  public static func isServing(_ directory: String) -> Bool {
    // SAFETY: a string that the call reads.
    unsafe access(LoopbackPaths.control(directory), F_OK) == 0
  }

  /// Ends the host: every connection is closed and the sockets are removed.
  public func stop() {
    stopped.withLock { done in
      if done { return }
      done = true
      wake.counter.signal()
      thread.join()
    }
  }

  deinit {
    stop()
  }
}

/// What a domain gets unless something else is said.
public enum LoopbackDefaults {
  /// gntalloc's page limit.
  public static let pageLimit = 1024
  /// How many pages of other domains a domain can have mapped at a time.
  public static let maptrackLimit = DomainLayout.maptrackCount
}

/// What ends the host's thread.
private final class StopSignal: Sendable {
  let counter: EventCounter

  init() throws(Errno) {
    counter = try EventCounter()
  }
}

/// Everything that the host's thread owns.
private final class HostState: LoopClient {
  private let files: HostDirectory
  private let loop: HostLoop
  private let machine = HostMachine()
  private let store: XenStoreServer
  private var control: ControlServer?
  private var isRunning = true
  let stop: StopSignal
  private var stopToken: UInt64 = 0

  init(files: HostDirectory) throws(Errno) {
    self.files = files
    stop = try StopSignal()
    loop = try HostLoop()
    store = XenStoreServer(loop: loop)
    stopToken = try loop.add(stop.counter.fileDescriptor, .readable, self)
  }

  func onLostPeer(_ call: @escaping (UInt16, UInt16) -> Void) { machine.lostPeer = call }

  func open(pageLimit: Int) throws(XenError) {
    do throws(Errno) {
      try createDomain(0, UInt32(clamping: pageLimit), UInt32(DomainLayout.frameCount))
      control = try ControlServer(
        files.listen(files.controlPath), machine: machine, loop: loop,
        createDomain: { [unowned self] number, limit, frames throws(Errno) in
          try createDomain(number, limit, frames)
        },
        destroyDomain: { [unowned self] number throws(Errno) in try destroyDomain(number) },
        introduceDomain: { [unowned self] number in store.introduce(number) },
        storeCounts: { [unowned self] number in store.counts(of: number) })
    } catch {
      throw XenError(errno: error, "cannot set up the loopback host in \(files.path)")
    }
  }

  func run() {
    while isRunning { loop.turn(milliseconds: nil) }
    loop.remove(stop.counter.fileDescriptor, stopToken)
    control?.stop()
    control = nil
    store.stop()
    files.remove()
  }

  func ready(_ readiness: Readiness) {
    isRunning = false
  }

  private func createDomain(_ number: UInt16, _ pageLimit: UInt32, _ frameLimit: UInt32) throws(Errno) {
    try machine.createDomain(number, pageLimit: pageLimit, frameLimit: frameLimit)
    do throws(Errno) {
      try store.listen(files.listen(files.makeStorePath(number)), for: number)
    } catch {
      try? machine.destroyDomain(number)
      throw error
    }
  }

  private func destroyDomain(_ number: UInt16) throws(Errno) {
    guard number != 0 else { throw .notPermitted }
    try machine.destroyDomain(number)
    files.removeStore(number)
    store.forget(number)
  }
}
