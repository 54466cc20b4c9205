// SPDX-License-Identifier: Apache-2.0
//
// A process's membership in a domain: the connection to the host, the domain's own memory, and that of the domains
// it has dealings with. Handles hold it; when the last is gone the connection closes, and for the host the join
// has died.

internal import CXen
internal import Glibc
internal import Platform
internal import Synchronization
internal import SystemPackage
internal import Xen

/// Talks to a host, one request at a time.
final class ControlClient: Sendable {
  let directory: String
  private let socket: OwnedDescriptor
  private let turn = Guarded(())

  init(_ directory: String) throws(XenError) {
    self.directory = directory
    do {
      socket = try UnixSocket.connect(path: LoopbackPaths.control(directory))
    } catch .system(.connectionRefused) {
      throw XenError(
        .unavailable, "the loopback host of \(directory) is gone; start one with `xbd-user loopback`")
    } catch .system(let errno) {
      throw XenError(
        .unavailable,
        "no loopback host answers in \(directory): \(errno); start one with `xbd-user loopback`",
        errno: errno)
    } catch {
      throw XenError(.invalid, "the path of the loopback directory \(directory) is too long for a socket")
    }
  }

  /// Whether the host has the other end of the connection.
  var isConnected: Bool {
    var look = pollfd(fd: socket.raw, events: 0, revents: 0)
    // SAFETY: one element, a local variable.
    return unsafe poll(&look, 1, 0) != 1
  }

  /// What came back, with up to two descriptors, which the caller owns.
  struct Reply: Sendable {
    let message: ControlMessage
    let descriptors: [Int32]

    /// A domain's memory, which takes the descriptors.
    ///
    /// - Throws: `.tooManyOpenFiles` when they did not both come: the kernel leaves out those for which the process
    ///   has no number left.
    func memory() throws(Errno) -> DomainMemory {
      guard descriptors.count == 2 else {
        for descriptor in descriptors { _ = close(descriptor) }
        throw .tooManyOpenFiles
      }
      return try DomainMemory.mapping(
        tables: OwnedDescriptor(descriptors[0]), pages: OwnedDescriptor(descriptors[1]))
    }
  }

  /// Asks the host and waits for its answer (about 20 µs).
  ///
  /// - Throws: the errno that the host answered, or `.brokenPipe` when there is no host any more.
  @discardableResult
  func call(_ request: ControlMessage, sending descriptor: Int32? = nil) throws(Errno) -> Reply {
    let result: Result<Reply, Errno> = turn.withLock { _ in exchange(request, descriptor) }
    return try result.get()
  }

  private func exchange(_ request: ControlMessage, _ descriptor: Int32?) -> Result<Reply, Errno> {
    let bytes = request.bytes
    let sending = descriptor.map { [$0] } ?? []
    let sent = retryInterrupted { sendMessage(bytes, sending, on: socket.raw) }
    guard sent == ControlMessage.byteCount else { return .failure(.brokenPipe) }
    var descriptors: [Int32] = []
    var input: [UInt8] = []
    while input.count < ControlMessage.byteCount {
      let got = retryInterrupted { receiveMessage(&input, &descriptors, limit: 2, on: socket.raw) }
      guard got > 0 else {
        for descriptor in descriptors { _ = close(descriptor) }
        return .failure(.brokenPipe)
      }
    }
    let message = ControlMessage(input)
    guard message.code == 0 else {
      for descriptor in descriptors { _ = close(descriptor) }
      return .failure(Errno(rawValue: Int32(bitPattern: message.code)))
    }
    return .success(Reply(message: message, descriptors: descriptors))
  }

  private func retryInterrupted(_ call: () -> Int) -> Int {
    while true {
      let result = call()
      if result >= 0 || Errno.current != .interrupted { return result }
    }
  }
}

/// A join of one process in one domain.
final class LoopbackConnection: Sendable {
  let control: ControlClient
  let domain: UInt16
  /// The join's number, unique for the host.
  let join: UInt32
  private let place: Int
  /// The domain's own memory.
  let memory: DomainMemory
  let maptrack: Maptrack
  private let foreign = Guarded<[UInt16: DomainMemory]>([:])

  init(directory: String, domain: UInt16, policy: MaptrackPolicy) throws(XenError) {
    control = try ControlClient(directory)
    self.domain = domain
    do throws(Errno) {
      let reply = try control.call(ControlMessage(.join, a: UInt32(domain)))
      join = reply.message.a
      place = Int(reply.message.b)
      memory = try reply.memory()
    } catch {
      if error == .noSuchFileOrDirectory {
        throw XenError(
          .notFound, "domain \(domain) does not exist in the loopback \(directory); create it first",
          errno: error)
      }
      throw XenError(errno: error, "cannot join the loopback \(directory) as domain \(domain)")
    }
    maptrack = Maptrack(memory, join: join, policy: policy)
  }

  /// The pages that this join counts against its domain's limit.
  var pagesShared: SharedUInt32 { memory.pagesShared(byJoinAt: place) }

  /// The other domains whose memory is kept open.
  var foreignDomains: Set<UInt16> { foreign.withLock { Set($0.keys) } }

  /// A domain's memory by its number, this domain's own included.
  ///
  /// - Throws: `.noSuchFileOrDirectory` when there is no such domain.
  func memory(of domain: UInt16) throws(Errno) -> DomainMemory {
    if domain == self.domain { return memory }
    if let known = foreign.withLock({ $0[domain] }), known.isAlive { return known }
    let memory = try control.call(ControlMessage(.lookUp, a: UInt32(domain))).memory()
    foreign.withLock { known in
      // Each keeps two descriptors, and numbers of domains are not used again for long.
      for (other, memory) in known where !memory.isAlive { known[other] = nil }
      known[domain] = memory
    }
    return memory
  }
}
