// SPDX-License-Identifier: Apache-2.0
//
// A control socket in front of a host's: what a process is told through it can be changed on the way.

import CXen
import Glibc
import Platform
import SystemPackage
import TestSupport
import Testing

@testable import XenLoopback

/// Hands one process's requests on to a host, and the replies back.
///
/// - Parameters:
///   - host: the directory of the host.
///   - change: called with each request's operation and the descriptors of its reply; it closes what it takes out.
///     With false the process is not answered any more, as by a host that was killed.
///   - body: called with the directory to join instead; whatever joins it is gone at its end.
func withControlProxy(
  of host: String, change: @escaping @Sendable (ControlOperation?, inout [Int32]) -> Bool,
  _ body: (_ directory: String) throws -> Void
) throws {
  let directory = try makeTemporaryPath("proxy")
  try #require(mkdir(directory, 0o700) == 0)
  defer {
    unlink(LoopbackPaths.control(directory))
    rmdir(directory)
  }
  let listener = try UnixSocket.listen(path: LoopbackPaths.control(directory)).release()
  let upstream = try UnixSocket.connect(path: LoopbackPaths.control(host)).release()
  let ended = try EventCounter()
  let end = ended.fileDescriptor
  let thread = try DedicatedThread(name: "proxy") {
    let listener = OwnedDescriptor(listener)
    let upstream = OwnedDescriptor(upstream)
    guard isReadable(listener.raw, milliseconds: 60_000), let raw = try? UnixSocket.accept(listener.raw)
    else {
      return
    }
    let process = OwnedDescriptor(raw)
    while let (request, sent) = receive(process.raw) {
      _ = sendMessage(request, sent, on: upstream.raw)
      for descriptor in sent { close(descriptor) }
      guard case (let reply, var descriptors)? = receive(upstream.raw) else { return }
      let isAnswered = change(ControlOperation(rawValue: ControlMessage(request).code), &descriptors)
      if isAnswered { _ = sendMessage(reply, descriptors, on: process.raw) }
      for descriptor in descriptors { close(descriptor) }
      guard isAnswered else { break }
    }
    // The host must not take it for the process's death.
    shutdown(process.raw, Int32(SHUT_RDWR))
    _ = isReadable(end, milliseconds: 60_000)
  }
  defer {
    ended.signal()
    thread.join()
  }
  try body(directory)
}

/// One message with its descriptors; nil when the other side has gone.
private func receive(_ socket: Int32) -> ([UInt8], [Int32])? {
  var bytes: [UInt8] = []
  var descriptors: [Int32] = []
  while bytes.count < ControlMessage.byteCount {
    guard isReadable(socket, milliseconds: 60_000),
      receiveMessage(&bytes, &descriptors, limit: 2, on: socket) > 0
    else { return nil }
  }
  return (bytes, descriptors)
}
