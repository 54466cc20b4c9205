// SPDX-License-Identifier: Apache-2.0
//
// Reads the first 512 bytes of a block device through XbdFront and prints them as hexadecimal digits.
//
//   example xvdb                  on a Xen guest
//   example xvda DIRECTORY        on a loopback host that runs in DIRECTORY

import Glibc
import Logging
import XbdFront
import Xen
import XenLoopback

@main
struct Example {
  static func main() {
    do {
      try readFirstSector()
    } catch {
      print("Error: \(error)")
      exit(1)
    }
  }

  static func readFirstSector() throws {
    let name = CommandLine.arguments.count > 1 ? CommandLine.arguments[1] : "xvda"
    let system: any XenSystem =
      CommandLine.arguments.count > 2
      ? try LoopbackDomain(joining: CommandLine.arguments[2], domain: DomainID(1)) : LibXenSystem()

    // Waits for the handshake; a control thread of the library performs it.
    let device = try BlockDevice.connect(name, on: system, logger: Logger(label: "example"))
    print("\(device.location.device): \(device.features.sectorCount * 512) bytes")

    // This thread owns the queue from here on.
    let queue = device.queues[0]
    var ended: Completion?
    queue.onCompletion = { ended = $0 }
    let request = BlockRequest(command: .read, byteOffset: 0, byteCount: 512)
    guard let operation = queue.begin(request, tag: 1) else { fatalError("no resources for one request") }
    queue.submit(operation)
    while ended == nil {
      if queue.poll() || !queue.armWakeup() { continue }
      // What the queue wants besides its descriptors: to look for a notification that was lost, or a request's timeout.
      let now = monotonicNanoseconds()
      let wait = queue.keepTime(now).map { Int32(clamping: ($0 - min($0, now)) / 1_000_000 + 1) } ?? -1
      var waits = queue.descriptors.map { pollfd(fd: $0, events: Int16(POLLIN), revents: 0) }
      _ = poll(&waits, nfds_t(waits.count), wait)
    }

    // The bytes lie in granted pages, which are the caller's until `release`.
    if ended?.status == .okay {
      var vector = iovec()
      let count = withUnsafeMutablePointer(to: &vector) {
        queue.vectors(of: operation, from: 0, into: UnsafeMutableBufferPointer(start: $0, count: 1))
      }
      let bytes = UnsafeRawBufferPointer(start: vector.iov_base, count: count == 1 ? vector.iov_len : 0)
      print(bytes.map { String($0 >> 4, radix: 16) + String($0 & 15, radix: 16) }.joined())
    }
    queue.release(operation)

    device.close()
    while !device.waitUntilClosed(milliseconds: 1) { queue.poll() }
  }

  static func monotonicNanoseconds() -> UInt64 {
    var time = timespec()
    clock_gettime(CLOCK_MONOTONIC, &time)
    return UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec)
  }
}
