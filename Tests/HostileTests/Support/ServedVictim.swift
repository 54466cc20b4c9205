// SPDX-License-Identifier: Apache-2.0
//
// A device whose backend means harm behind the whole NBD service: the service's own threads run the queue, and clients
// sit on a socket. What xbd-user's FrontTarget is to `serve`, `QueueTarget` is here.

import Glibc
import HostileBackend
import Logging
import NBD
import Platform
import SystemPackage
import Testing
import TestSupport
import Xen
import XenLoopback

@testable import XbdFront

/// A queue as the NBD service sees it.
final class QueueTarget: BlockTarget {
  private let queue: BlockQueue
  private let clock: WatchedThread
  var onCompletion: (UInt64, TargetOperation, TargetStatus) -> Void = { _, _, _ in }
  var onDescriptorsChange: ([Int32], [Int32]) -> Void {
    get { queue.onDescriptorsChange }
    set { queue.onDescriptorsChange = newValue }
  }

  /// - Parameter clock: remembers the worker's thread.
  init(_ queue: BlockQueue, _ clock: WatchedThread) {
    self.queue = queue
    self.clock = clock
    queue.onCompletion = { [unowned self] completion in
      onCompletion(
        completion.tag, TargetOperation(rawValue: completion.operation.rawValue),
        completion.status == .okay ? .okay : .ioError)
    }
  }

  deinit { queue.onCompletion = { _ in } }

  var geometry: TargetGeometry {
    TargetGeometry(
      byteCount: queue.parameters.sectorCount << 9, sectorSize: 512, preferredSize: 4096, isReadOnly: false,
      canFlush: true, canTrim: false, canFastZero: false)
  }
  func begin(_ request: TargetRequest, tag: UInt64) -> TargetOperation? {
    let command: BlockRequest.Command =
      switch request.command {
      case .read: .read
      case .write: .write
      case .flush: .flush
      case .trim: .discard
      case .writeZeroes: .writeZeroes
      }
    return queue.begin(
      BlockRequest(
        command: command, forceUnitAccess: request.forceUnitAccess, byteOffset: request.byteOffset,
        byteCount: request.byteCount), tag: tag
    ).map { TargetOperation(rawValue: $0.rawValue) }
  }
  func vectors(
    of operation: TargetOperation, from byteOffset: Int, into vectors: UnsafeMutableBufferPointer<iovec>
  ) -> Int {
    queue.vectors(of: OperationID(rawValue: operation.rawValue), from: byteOffset, into: vectors)
  }
  func submit(_ operation: TargetOperation) { queue.submit(OperationID(rawValue: operation.rawValue)) }
  func cancel(_ operation: TargetOperation) { queue.cancel(OperationID(rawValue: operation.rawValue)) }
  func release(_ operation: TargetOperation) { queue.release(OperationID(rawValue: operation.rawValue)) }
  func poll() -> Bool {
    clock.remember()
    return queue.poll()
  }
  var hasMore: Bool { queue.hasMore }
  func armWakeup() -> Bool { queue.armWakeup() }
  func keepTime(_ now: UInt64) -> UInt64? { queue.keepTime(now) }
  var descriptors: [Int32] { queue.descriptors }
}

/// Machine, backend, device and server of one test.
final class ServedVictim {
  let machine: HostileMachine
  let backend: HostileBackend
  let device: BlockDevice
  private let server: Server
  private let directory: String
  let path: String
  let worker = WatchedThread()
  let control = WatchedThread()
  /// How often the control thread has followed a watch to a backend that is connected as before.
  let looks = Locked(0)

  init(options: FrontendOptions = Victim.options()) throws {
    machine = try HostileMachine()
    backend = try HostileBackend(machine)
    directory = try makeTemporaryDirectory("served")
    path = directory + "/s"
    let (control, looks) = (control, looks)
    device = try BlockDevice.connect(
      String(machine.device.virtualDevice), on: try machine.frontend(), options: options,
      logger: Logger(label: "served") { _ in ThreadListener(control, looks) })
    let socket = try ListeningSocket.unix(path: path)
    nonisolated(unsafe) let targets: [any BlockTarget] = [QueueTarget(device.queues[0], worker)]
    server = try Server(sockets: [socket], targets: targets, export: Export(name: ""))
  }

  /// Ends everything.
  func stop() {
    server.stop(gracePeriod: .seconds(1))
    for queue in device.queues { queue.onCompletion = { _ in } }
    device.close()
    let deadline = MonotonicClock.nanoseconds() &+ UInt64(patience * 1e9)
    while !device.waitUntilClosed(milliseconds: 1), MonotonicClock.nanoseconds() < deadline {
      for queue in device.queues { queue.poll() }
    }
    #expect(device.waitUntilClosed(milliseconds: 0))
    backend.stop()
    // The server's socket is there until the server is not.
    unlink(path)
    rmdir(directory)
  }

  /// Processor time of the service's worker and of the device's control thread, in seconds.
  var processorSeconds: Double { worker.seconds + control.seconds }
}

/// The processor time of a thread that has come by.
///
/// Names do not tell threads of tests that run at the same time apart.
final class WatchedThread: Sendable {
  private let clock = Locked<clockid_t?>(nil)

  /// The calling thread is the one.
  func remember() {
    clock.with { clock in
      guard clock == nil else { return }
      var found = clockid_t()
      if pthread_getcpuclockid(pthread_self(), &found) == 0 { clock = found }
    }
  }

  /// What it has used, in seconds; 0 before it has come by.
  var seconds: Double {
    guard let clock = clock.with({ $0 }) else { return 0 }
    var time = timespec()
    clock_gettime(clock, &time)
    return Double(time.tv_sec) + Double(time.tv_nsec) / 1e9
  }
}

/// Remembers the thread that logs: the control thread says each of its actions.
private struct ThreadListener: LogHandler {
  let clock: WatchedThread
  let looks: Locked<Int>
  var logLevel = Logger.Level.debug
  var metadata = Logger.Metadata()
  init(_ clock: WatchedThread, _ looks: Locked<Int>) {
    self.clock = clock
    self.looks = looks
  }
  subscript(metadataKey key: String) -> Logger.Metadata.Value? {
    get { metadata[key] }
    set { metadata[key] = newValue }
  }
  func log(event: LogEvent) {
    clock.remember()
    if "\(event.message)".hasSuffix("rereadSize") { looks.with { $0 += 1 } }
  }
}

/// A client of the simplest kind: the old export name, simple replies, one request at a time.
final class NBDClient {
  private let socket: Int32
  private var cookie: UInt64 = 0
  struct Broken: Error {}

  init(_ path: String) throws {
    socket = Glibc.socket(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0)
    var address = sockaddr_un()
    address.sun_family = sa_family_t(AF_UNIX)
    withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: path.utf8) }
    let connected = withUnsafePointer(to: &address) {
      $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        Glibc.connect(socket, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
      }
    }
    // A server that does not answer is a hang, and a hang fails the test.
    var limit = timeval(tv_sec: 30, tv_usec: 0)
    setsockopt(socket, SOL_SOCKET, SO_RCVTIMEO, &limit, socklen_t(MemoryLayout<timeval>.size))
    guard connected == 0 else { throw Broken() }
    _ = try receive(18)
    try send(Self.big(UInt32(3)) + Array("IHAVEOPT".utf8) + Self.big(UInt32(1)) + Self.big(UInt32(0)))
    _ = try receive(10)
  }

  deinit { close(socket) }

  func read(_ offset: Int, _ count: Int) throws -> [UInt8] {
    try request(0, offset, count)
    return try receive(count)
  }

  func write(_ offset: Int, _ data: [UInt8]) throws { try request(1, offset, data.count, data) }

  private func request(_ command: UInt16, _ offset: Int, _ count: Int, _ data: [UInt8] = []) throws {
    cookie += 1
    try send(
      Self.big(UInt32(0x2560_9513)) + Self.big(UInt16(0)) + Self.big(command) + Self.big(cookie)
        + Self.big(UInt64(offset)) + Self.big(UInt32(count)) + data)
    let reply = try receive(16)
    guard reply[0..<8] == [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0], Array(reply[8...]) == Self.big(cookie) else {
      throw Broken()
    }
  }

  private static func big(_ value: some FixedWidthInteger) -> [UInt8] {
    withUnsafeBytes(of: value.bigEndian) { Array($0) }
  }

  private func send(_ bytes: [UInt8]) throws {
    var done = 0
    while done < bytes.count {
      let count = bytes[done...].withUnsafeBytes {
        Glibc.send(socket, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL))
      }
      guard count > 0 else { throw Broken() }
      done += count
    }
  }

  private func receive(_ count: Int) throws -> [UInt8] {
    var bytes: [UInt8] = []
    var part = [UInt8](repeating: 0, count: count)
    while bytes.count < count {
      let got = part.withUnsafeMutableBytes { Glibc.recv(socket, $0.baseAddress, count - bytes.count, 0) }
      guard got > 0 else { throw Broken() }
      bytes += part[..<got]
    }
    return bytes
  }
}
