// SPDX-License-Identifier: Apache-2.0
//
// The one wait of a thread: epoll over sockets, event channels and wake-up descriptors. No callbacks: a wait
// fills a buffer and the owner of the thread walks it, so that what happens in one turn can be read in one place.

internal import CXen
internal import Glibc
public import SystemPackage

/// What a descriptor became ready for, or is waited for.
public struct Readiness: OptionSet, Sendable {
  /// The EPOLL bits.
  public let rawValue: UInt32
  /// A set from EPOLL bits.
  public init(rawValue: UInt32) { self.rawValue = rawValue }

  /// Data can be read, or a connection accepted (EPOLLIN).
  public static let readable = Readiness(rawValue: 0x001)
  /// Data can be written (EPOLLOUT).
  public static let writable = Readiness(rawValue: 0x004)
  /// An error is pending (EPOLLERR).
  ///
  /// Always reported.
  public static let error = Readiness(rawValue: 0x008)
  /// Both directions were shut down (EPOLLHUP).
  ///
  /// Always reported.
  public static let hangup = Readiness(rawValue: 0x010)
  /// The peer will send nothing more (EPOLLRDHUP).
  public static let peerClosed = Readiness(rawValue: 0x2000)
}

/// One descriptor that became ready.
public struct Event {
  /// The token that the descriptor was added with.
  public let token: UInt64
  /// What it became ready for.
  public let readiness: Readiness
}

/// An epoll instance with a buffer for its events, owned by one thread.
///
/// Level-triggered: a descriptor that stays ready is reported by every wait, unless EPOLLET is
/// among what it is watched for.
@safe public struct EventLoop: ~Copyable {
  private let descriptor: OwnedDescriptor
  private let buffer: UnsafeMutableBufferPointer<epoll_event>

  /// Creates an empty loop.
  ///
  /// - Parameter capacity: how many events one wait can report.
  public init(capacity: Int = 64) throws(Errno) {
    descriptor = OwnedDescriptor(try retrying { epoll_create1(Int32(EPOLL_CLOEXEC)) })
    // SAFETY: allocated here, freed in deinit, all of it initialised.
    unsafe buffer = .allocate(capacity: capacity)
    unsafe buffer.initialize(repeating: epoll_event())
  }

  deinit {
    // SAFETY: nothing else has the pointer.
    unsafe buffer.deallocate()
  }

  /// The epoll instance, readable while a watched descriptor is ready; owned by this value.
  public var fileDescriptor: Int32 { descriptor.raw }

  /// Starts to watch a descriptor, which stays the caller's.
  public func add(_ fileDescriptor: Int32, _ interest: Readiness, token: UInt64) throws(Errno) {
    try control(EPOLL_CTL_ADD, fileDescriptor, interest, token)
  }

  /// Changes what a watched descriptor is watched for.
  public func modify(_ fileDescriptor: Int32, _ interest: Readiness, token: UInt64) throws(Errno) {
    try control(EPOLL_CTL_MOD, fileDescriptor, interest, token)
  }

  /// Stops watching a descriptor; one that is not watched is no error.
  public func remove(_ fileDescriptor: Int32) {
    _ = epoll_ctl(descriptor.raw, EPOLL_CTL_DEL, fileDescriptor, nil)
  }

  /// Waits until a descriptor is ready.
  ///
  /// - Parameter milliseconds: the longest wait; 0 only looks, nil waits for ever.
  /// - Returns: how many events `event(_:)` now has; 0 after a timeout or an interrupting signal.
  public func wait(milliseconds: Int32?) -> Int {
    // SAFETY: the kernel fills at most `count` elements of the buffer.
    let count = unsafe epoll_wait(descriptor.raw, buffer.baseAddress, Int32(buffer.count), milliseconds ?? -1)
    return max(0, Int(count))
  }

  /// One event of the last wait.
  ///
  /// - Parameter index: from 0 up to, not including, what `wait` returned.
  public func event(_ index: Int) -> Event {
    // SAFETY: callers ask for the events that `wait` counted; the union only ever holds a token.
    let raw = unsafe buffer[index]
    return unsafe Event(token: raw.data.u64, readiness: Readiness(rawValue: raw.events))
  }

  private func control(
    _ operation: Int32, _ fileDescriptor: Int32, _ interest: Readiness, _ token: UInt64
  ) throws(Errno) {
    // SAFETY: the union only ever holds a token; the kernel reads the local variable.
    var event = unsafe epoll_event()
    unsafe event.events = interest.rawValue
    unsafe event.data.u64 = token
    try retrying { unsafe epoll_ctl(descriptor.raw, operation, fileDescriptor, &event) }
  }
}
