// SPDX-License-Identifier: Apache-2.0
//
// `xen-party costs DIRECTORY`: what the loopback's operations cost on this machine, with a host of its own.

import Platform
import Xen
import XenLoopback

/// Prints nanoseconds for each operation.
func printCosts(_ directory: String) throws {
  let host = try LoopbackHost(directory: directory)
  defer { host.stop() }
  let toolstack = try LoopbackToolstack(directory: directory)
  try toolstack.createDomain(DomainID(1))
  let front = try LoopbackDomain(joining: directory, domain: DomainID(1))
  let back = try LoopbackDomain(joining: directory, domain: .dom0)
  let (sharing, mapping) = (try front.openGrantSharing(), try back.openGrantMapping())
  let pages = try sharing.share(pages: 64, with: .dom0, writable: true)
  for count in [1, 11, 32] {
    let references = Array(pages.references.prefix(count))
    try measure("map and unmap \(count) pages, one run", 20_000) {
      let address = try mapping.map(references, of: DomainID(1), writable: true)
      try mapping.unmap(address, count: count)
    }
    var scattered: [GrantRef] = []
    for index in stride(from: 0, to: count * 2, by: 2) { scattered.append(pages.references[index % 63]) }
    try measure("map and unmap \(count) pages, scattered", 20_000) {
      let address = try mapping.map(scattered, of: DomainID(1), writable: true)
      try mapping.unmap(address, count: count)
    }
    try measure("share and unshare \(count) pages", 20_000) {
      _ = try sharing.share(pages: count, with: .dom0, writable: true)
    }
  }
  let buffer = UnsafeMutableRawPointer.allocate(byteCount: 4096, alignment: 4096)
  defer { buffer.deallocate() }
  var segment = [
    GrantCopySegment(
      source: .granted(pages.references[0], DomainID(1), offset: 0), destination: .local(buffer),
      byteCount: 4096)
  ]
  try measure("copy 4096 bytes", 200_000) {
    var segments = segment.mutableSpan
    try mapping.copy(&segments)
  }
  let (ours, theirs) = (try front.openEventChannels(), try back.openEventChannels())
  let port = try ours.bindUnbound(remote: .dom0)
  let bound = try theirs.bindInterdomain(remote: DomainID(1), port: port)
  _ = try theirs.nextPending()
  try theirs.unmask(bound)
  try measure("notify, take, unmask", 200_000) {
    try ours.notify(port)
    if try theirs.nextPending() == nil { fatalError("an event was lost") }
    try theirs.unmask(bound)
  }
  try ours.notify(port)
  try measure("notify what is pending", 1_000_000) { try ours.notify(port) }
  _ = try theirs.nextPending()
  try measure("look in vain", 1_000_000) { _ = try theirs.nextPending() }
  let store = try front.openXenStore()
  try measure("xenstore write", 5_000) { try store.write("data/x", "1") }
  try measure("xenstore transaction", 2_000) {
    try store.transaction { (operations) throws(XenError) in try operations.write("data/x", "2") }
  }
  for policy in MaptrackPolicy.allCases {
    for threads in [1, 2] {
      let cost = try maptrackBenchmark(policy: policy, threads: threads, iterations: 2_000_000)
      print("maptrack \(policy.rawValue), \(threads) vCPUs: \(Int(cost)) ns")
    }
  }
}

private func measure(_ name: String, _ iterations: Int, _ body: () throws -> Void) throws {
  let start = MonotonicClock.nanoseconds()
  for _ in 0..<iterations { try body() }
  print("\(name): \(Int(MonotonicClock.nanoseconds() - start) / iterations) ns")
}
