// SPDX-License-Identifier: Apache-2.0
//
// One client of the xenstore server: bytes in, requests out; replies and events in, bytes out. Nothing a client
// sends can hurt anybody but itself: a header that promises too much closes the connection.

internal import CXen
internal import Glibc
internal import Platform
internal import SystemPackage

/// A watch of one connection.
struct XenStoreWatch {
  /// What it watches: a checked path, or nil for a special one such as "@releaseDomain".
  let path: XenStorePath?
  /// The path as it was registered.
  let given: String
  let token: String
  /// Whether it was registered relative to the domain's home, and its events are to be.
  let isRelative: Bool

  /// Whether the other watches the same with the same token, whichever way its path was given.
  func isSame(_ other: XenStoreWatch) -> Bool {
    guard token == other.token else { return false }
    return path == nil ? other.path == nil && given == other.given : path == other.path
  }
}

/// A connected client.
final class XenStoreConnection: LoopClient {
  let domain: UInt16
  var watches: [XenStoreWatch] = []
  var transactions: [UInt32: XenStoreTransaction] = [:]
  private(set) var isOpen = true

  private let descriptor: OwnedDescriptor
  private unowned let server: XenStoreServer
  private let loop: HostLoop
  private var token: UInt64 = 0
  private var interest: Readiness = .readable
  // A header, then its payload; never more than one request.
  private var input: [UInt8] = []
  private var output: [UInt8] = []
  // How much of `output` the socket has taken.
  private var sent = 0

  /// Bytes that are kept for the client's sake, also those that it has been sent and that are not given back yet.
  var keptBytes: Int { output.count }

  init(
    _ descriptor: consuming OwnedDescriptor, domain: UInt16, server: XenStoreServer, loop: HostLoop
  ) throws(Errno) {
    self.descriptor = descriptor
    self.domain = domain
    self.server = server
    self.loop = loop
    token = try loop.add(self.descriptor.raw, interest, self)
  }

  func ready(_ readiness: Readiness) {
    if readiness.contains(.writable) { flush() }
    if readiness.contains(.readable) {
      receive()
    } else if readiness.contains(.error) || readiness.contains(.hangup) {
      close()
    }
    adjustInterest()
  }

  /// Queues a reply or event and sends what the socket takes.
  func send(_ type: UInt32, request: UInt32, transaction: UInt32, _ payload: [UInt8]) {
    guard isOpen else { return }
    XenStoreHeader(type: type, request: request, transaction: transaction, byteCount: payload.count)
      .append(to: &output)
    output.append(contentsOf: payload)
    if output.count - sent > XenStoreLimits.outputBound {
      // A client that never reads its events; xenstored drops it for its memory quota.
      close()
      return
    }
    flush()
    adjustInterest()
  }

  /// Closes it if there is nobody at its other end any more, though no event has said so yet.
  func closeIfLeft() {
    var look = pollfd(fd: descriptor.raw, events: 0, revents: 0)
    // SAFETY: one descriptor, in the local variable.
    if unsafe poll(&look, 1, 0) == 1, Int32(look.revents) & POLLHUP != 0 { close() }
  }

  func close() {
    guard isOpen else { return }
    isOpen = false
    loop.remove(descriptor.raw, token)
    _ = shutdown(descriptor.raw, Int32(SHUT_RDWR))
    output = []
    server.closed(self)
  }

  // At most a few requests a turn, so that one client does not starve the others.
  private func receive() {
    for _ in 0..<16 where isOpen && output.count - sent < XenStoreLimits.outputPause {
      let wanted: Int
      if input.count < XenStoreLimits.headerBytes {
        wanted = XenStoreLimits.headerBytes - input.count
      } else {
        let header = XenStoreHeader(input)
        wanted = XenStoreLimits.headerBytes + Int(header.byteCount) - input.count
      }
      if wanted > 0 {
        let got = read(wanted)
        if got < 0 { return }
        if got == 0 { return close() }
      }
      guard input.count >= XenStoreLimits.headerBytes else { continue }
      let header = XenStoreHeader(input)
      guard header.byteCount <= XenStoreLimits.payloadBytes else { return close() }
      guard input.count == XenStoreLimits.headerBytes + Int(header.byteCount) else { continue }
      let payload = XenStorePayload(bytes: Array(input[XenStoreLimits.headerBytes...]))
      input.removeAll(keepingCapacity: true)
      server.serve(header, payload, from: self)
    }
  }

  /// - Returns: how many bytes came; 0 at the end, -1 when there is nothing for now.
  private func read(_ wanted: Int) -> Int {
    // SAFETY: the kernel writes at most `wanted` bytes, which the buffer has; what it says it wrote is read.
    unsafe withUnsafeTemporaryAllocation(byteCount: wanted, alignment: 16) { buffer in
      while true {
        let got = unsafe Glibc.read(descriptor.raw, buffer.baseAddress, wanted)
        if got > 0 { unsafe input.append(contentsOf: buffer[..<got]) }
        if got >= 0 { return got }
        switch Errno.current {
        case .interrupted: continue
        case .wouldBlock, .resourceTemporarilyUnavailable: return -1
        default: return 0
        }
      }
    }
  }

  private func flush() {
    while isOpen && sent < output.count {
      // SAFETY: what is left of the array, from `sent`, which is less than its length.
      let count = unsafe output.withUnsafeBytes { bytes in
        unsafe Glibc.send(
          descriptor.raw, bytes.baseAddress?.advanced(by: sent), bytes.count - sent, Int32(MSG_NOSIGNAL))
      }
      if count > 0 {
        sent += count
        continue
      }
      switch Errno.current {
      case .interrupted: continue
      case .wouldBlock, .resourceTemporarilyUnavailable: return dropSent()
      default: return close()
      }
    }
    output.removeAll(keepingCapacity: output.capacity <= 16 << 10)
    sent = 0
  }

  // A client that always leaves something unread never lets `output` become empty. Only when more was sent than is left,
  // so that a byte is moved once at most.
  private func dropSent() {
    guard sent >= XenStoreLimits.outputSlack, sent >= output.count - sent else { return }
    output.removeFirst(sent)
    sent = 0
  }

  private func adjustInterest() {
    guard isOpen else { return }
    let waiting = output.count - sent
    var wanted: Readiness = waiting < XenStoreLimits.outputPause ? .readable : []
    if waiting > 0 { wanted.insert(.writable) }
    if wanted != interest {
      interest = wanted
      loop.modify(descriptor.raw, wanted, token)
    }
  }
}
