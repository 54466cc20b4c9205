// SPDX-License-Identifier: Apache-2.0

import Glibc
import NBDTestSupport
import Platform
import Synchronization

@testable import NBD

/// A disk of a megabyte unless told otherwise, and a worker that serves it; stopped at the end of the test.
final class Service {
  let disk: MemoryDisk
  let worker: Worker

  init(
    byteCount: Int = 1 << 20, pageCount: Int = 16_384, operationCount: Int = 1024,
    order: MemoryTarget.Order = .inOrder, export: Export = Export(name: "disk", description: "A disk"),
    geometry: (inout TargetGeometry) -> Void = { _ in },
    configuration: (inout WorkerConfiguration) -> Void = { _ in }
  ) throws {
    disk = MemoryDisk(byteCount: byteCount)
    var facts = disk.geometry
    geometry(&facts)
    var settings = WorkerConfiguration()
    // The machine that runs the tests has better things to do than to spin.
    settings.maximumSpinMicroseconds = 0
    configuration(&settings)
    worker = try Worker(
      target: try MemoryTarget(
        disk: disk, pageCount: pageCount, operationCount: operationCount, order: order, geometry: facts),
      export: export, configuration: settings)
  }

  deinit {
    worker.stop(gracePeriod: .zero)
    worker.join()
  }
}

/// Waits until a condition holds, at most 30 seconds.
func eventually(_ condition: () -> Bool) -> Bool {
  let deadline = MonotonicClock.nanoseconds() + 30_000_000_000
  while !condition() {
    if MonotonicClock.nanoseconds() > deadline { return false }
    usleep(1000)
  }
  return true
}

/// Bytes that are different everywhere.
func pattern(_ count: Int, seed: UInt8 = 1) -> [UInt8] {
  (0..<count).map { UInt8(truncatingIfNeeded: ($0 &* 2_654_435_761) >> 11) &+ seed }
}

/// Runs blocking work on threads of their own, all at a time, and throws what one of them threw.
func concurrently(_ count: Int, _ body: @escaping @Sendable (Int) throws -> Void) throws {
  let box = Failure()
  let threads = try (0..<count).map { index in
    try DedicatedThread(name: "client-\(index)") {
      do { try body(index) } catch { box.value.withLock { $0 = error } }
    }
  }
  for thread in threads { thread.join() }
  if let error = box.value.withLock({ $0 }) { throw error }
}

private final class Failure: Sendable {
  let value = Mutex<(any Error)?>(nil)
}

/// A small generator with a seed, so that a failure can be repeated.
struct SeededGenerator: RandomNumberGenerator {
  private var state: UInt64

  init(seed: UInt64) { state = seed &* 0x9e37_79b9_7f4a_7c15 | 1 }

  mutating func next() -> UInt64 {
    state ^= state << 13
    state ^= state >> 7
    state ^= state << 17
    return state
  }
}

let allStyles: [ReplyStyle] = [.simple, .structured, .extended]
