// SPDX-License-Identifier: Apache-2.0
//
// An NBD client that sends anything, against one worker's loop. The first byte says whether the handshake is done
// for it (and in which style), and into pieces of what size its bytes are cut; the rest is what it sends.

import CXen
import Glibc
import NBDTestSupport
import Platform
import SystemPackage

@testable import NBD

func nbd(_ input: inout FuzzInput) {
  let shape = input.byte()
  var bytes = shape & 4 == 0 ? [] : handshake(ReplyStyle(rawValue: shape & 3) ?? .simple)
  bytes += input.rest()
  pure(bytes)
  serve(bytes, piece: [1 << 20, 7, 28, 61][Int(shape >> 3 & 3)], readOnly: shape & 0x20 != 0)
}

private let geometry = TargetGeometry(
  byteCount: 64 << 10, sectorSize: 512, preferredSize: 4096, isReadOnly: false, canFlush: true, canTrim: true,
  canFastZero: true)

/// What a client sends up to the end of the handshake.
private func handshake(_ style: ReplyStyle) -> [UInt8] {
  var bytes: [UInt8] = []
  bytes.appendBigEndian(NBDClientFlags.known.rawValue)
  func option(_ number: UInt32, _ data: [UInt8]) {
    bytes.appendBigEndian(NBDMagic.option)
    bytes.appendBigEndian(number)
    bytes.appendBigEndian(UInt32(data.count))
    bytes += data
  }
  if style == .structured { option(NBDOption.structuredReply, []) }
  if style == .extended { option(NBDOption.extendedHeaders, []) }
  if style != .simple {
    var query: [UInt8] = []
    query.appendBigEndian(UInt32(0))
    query.appendBigEndian(UInt32(1))
    query.appendBigEndian(UInt32(NBDMetaContext.allocation.utf8.count))
    option(NBDOption.setMetaContext, query + Array(NBDMetaContext.allocation.utf8))
  }
  option(NBDOption.go, [0, 0, 0, 0, 0, 0])
  return bytes
}

/// The handshake alone: what the bytes are cut into makes no difference.
private func pure(_ bytes: [UInt8]) {
  func run(_ piece: Int) -> ([UInt8], Int, NegotiatedSession?) {
    var machine = Handshake(export: Export(name: "disk", description: "A disk"))
    var sent: [UInt8] = []
    var position = 0
    while position < bytes.count {
      let end = min(position + piece, bytes.count)
      let (consumed, action) = machine.receive(
        bytes.span.extracting(position..<end), geometry: geometry, isStopping: false)
      position += consumed
      switch action {
      case .none: if consumed == 0 { return (sent, position, nil) }
      case .send(let reply): sent += reply
      case .transmit(let reply, let session): return (sent + reply, position, session)
      case .close(let reply): return (sent + reply, position, nil)
      }
      // An option may be answered with a few kilobytes for as many asked, not with more.
      guard sent.count <= 64 * (bytes.count + 64) else { violated("replies are bounded: \(sent.count)") }
    }
    return (sent, position, nil)
  }
  let whole = run(bytes.count)
  let bits = run(5)
  guard whole.0 == bits.0, whole.1 == bits.1, whole.2 == bits.2 else {
    violated("what the bytes are cut into makes no difference")
  }
}

/// A target that has a hand in the loop: when the loop has nothing to do, the client sends more or goes away.
private final class Script: BlockTarget {
  let inner: MemoryTarget
  let onIdle: () -> Bool
  init(_ inner: MemoryTarget, onIdle: @escaping () -> Bool) {
    self.inner = inner
    self.onIdle = onIdle
  }
  var geometry: TargetGeometry { inner.geometry }
  func begin(_ request: TargetRequest, tag: UInt64) -> TargetOperation? {
    if request.command != .flush {
      let (end, overflow) = request.byteOffset.addingReportingOverflow(request.byteCount)
      guard !overflow, end <= geometry.byteCount else { violated("the target is asked for what there is") }
    }
    return inner.begin(request, tag: tag)
  }
  func vectors(
    of operation: TargetOperation, from byteOffset: Int, into vectors: UnsafeMutableBufferPointer<iovec>
  ) -> Int { inner.vectors(of: operation, from: byteOffset, into: vectors) }
  func submit(_ operation: TargetOperation) { inner.submit(operation) }
  func cancel(_ operation: TargetOperation) { inner.cancel(operation) }
  func release(_ operation: TargetOperation) { inner.release(operation) }
  var onCompletion: (UInt64, TargetOperation, TargetStatus) -> Void {
    get { inner.onCompletion }
    set { inner.onCompletion = newValue }
  }
  func poll() -> Bool { inner.poll() }
  var hasMore: Bool { inner.hasMore }
  func armWakeup() -> Bool { inner.armWakeup() && onIdle() }
  var descriptors: [Int32] { inner.descriptors }
}

private func serve(_ bytes: [UInt8], piece: Int, readOnly: Bool) {
  let disk = MemoryDisk(byteCount: Int(geometry.byteCount))
  var pair: [Int32] = [-1, -1]
  guard socketpair(AF_UNIX, streamSocket, 0, &pair) == 0,
    let mailbox = try? WorkerMailbox(), let events = try? EventLoop(capacity: 8),
    let target = try? MemoryTarget(
      disk: disk, pageCount: 64, operationCount: 16, order: .inOrder, geometry: geometry)
  else { violated("there is room for a worker") }
  let client = pair[0]
  var position = 0
  var replies: [UInt8] = []
  var isOver = false
  let script = Script(target) {
    if isOver { return true }
    let got = drain(client, &replies)
    let end = min(position + piece, bytes.count)
    let sent = bytes[position..<end].withUnsafeBytes { write(client, $0.baseAddress, $0.count) }
    if sent > 0 { position += sent } else if position < bytes.count, !got { position = bytes.count }
    if position >= bytes.count, sent <= 0, !got {
      isOver = true
      shutdown(client, Int32(SHUT_WR))
      _ = mailbox.post(.stop(deadline: 0))
    }
    // The loop may sleep if that will wake it.
    return sent > 0 || isOver
  }
  var configuration = WorkerConfiguration()
  configuration.maximumSpinMicroseconds = 0
  configuration.maximumConnections = 2
  configuration.maximumRequests = 16
  let limiter = ConnectionLimiter(limit: 2)
  _ = limiter.enter()
  guard (try? WorkerLoop.prepare(events, mailbox, script.descriptors)) != nil else {
    violated("a worker can be prepared")
  }
  _ = mailbox.post(.adopt(pair[1]))
  let loop = WorkerLoop(
    target: script, export: Export(name: "disk", description: "A disk", isReadOnly: readOnly),
    configuration: configuration, mailbox: mailbox, counters: WorkerCounters(), limiter: limiter,
    group: WorkerGroup(), events: events)
  let outcome = loop.run()
  guard outcome.abandonedOperations == 0 else { violated("every operation comes back") }
  close(client)
}

private func drain(_ descriptor: Int32, _ into: inout [UInt8]) -> Bool {
  withUnsafeTemporaryAllocation(byteCount: 64 << 10, alignment: 16) { buffer in
    var any = false
    while true {
      let got = read(descriptor, buffer.baseAddress, buffer.count)
      if got <= 0 { return any }
      any = true
    }
  }
}
