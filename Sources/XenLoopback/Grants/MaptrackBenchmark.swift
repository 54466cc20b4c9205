// SPDX-License-Identifier: Apache-2.0
//
// What taking and giving back a maptrack handle costs under either policy, with as many vCPUs as wanted.

internal import CXen
internal import Platform
internal import Synchronization
public import SystemPackage

/// Measures the maptrack's free lists.
///
/// Each thread is a vCPU that takes a batch of handles and gives them back, over and over; all belong to one domain.
///
/// - Parameters:
///   - policy: which lists.
///   - threads: 1 to 64.
///   - iterations: handles that each thread takes and gives back.
/// - Returns: nanoseconds for a handle taken and given back, by the wall clock, per thread.
/// - Throws: `Errno` when there is no memory or no thread to be had.
public func maptrackBenchmark(
  policy: MaptrackPolicy, threads: Int, iterations: Int
) throws(Errno) -> Double {
  precondition((1...Maptrack.vcpuCount).contains(threads), "1 to 64 threads")
  let memory = try DomainMemory(
    creating: 0, serial: 0, pageLimit: 0, frameLimit: UInt32(DomainLayout.frameCount))
  let maptrack = Maptrack(memory, join: 1, policy: policy)
  let batch = 32
  let ready = Flag()
  var running: [DedicatedThread] = []
  for vcpu in 0..<threads {
    running.append(
      try DedicatedThread(name: "maptrack-\(vcpu)") {
        while !ready.isSet { cxen_spin_hint() }
        var handles = [UInt32](repeating: 0, count: batch)
        for _ in 0..<(iterations / batch) {
          var taken = 0
          while taken < batch, let handle = maptrack.take(asVCPU: vcpu) {
            handles[taken] = handle
            taken += 1
          }
          for index in 0..<taken { maptrack.put(handles[index]) }
        }
      })
  }
  let start = MonotonicClock.nanoseconds()
  ready.set()
  for thread in running { thread.join() }
  return Double(MonotonicClock.nanoseconds() - start) / Double(max(1, iterations / batch * batch))
}

private final class Flag: Sendable {
  private let value = Atomic<Bool>(false)
  var isSet: Bool { value.load(ordering: .acquiring) }
  func set() { value.store(true, ordering: .releasing) }
}
