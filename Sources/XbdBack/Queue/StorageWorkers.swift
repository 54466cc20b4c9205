// SPDX-License-Identifier: Apache-2.0
//
// The threads that wait for the disk, so that a queue's thread does not have to: reads of what is not cached,
// flushes, discards. They come into being with the first job and are shared by all queues of a backend.

internal import Platform
internal import SystemPackage

/// A small pool of threads; jobs are slots of queues.
final class StorageWorkers: @unchecked Sendable {
  private struct Job {
    let lane: SlowLane
    let slot: UInt32
  }
  private let monitor = Monitor()
  private let threadCount: Int
  // Guarded by `monitor`.
  private var jobs: [Job?]
  private var head = 0
  private var count = 0
  private var idle = 0
  private var threads: [DedicatedThread] = []
  private var stopping = false

  init(threadCount: Int) {
    self.threadCount = threadCount
    jobs = Array(repeating: nil, count: 256)
  }

  /// Gives a slot to a worker; without one, which takes a system that has no thread left, does it right here.
  func submit(_ lane: SlowLane, slot: UInt32) {
    let accepted = monitor.withLock { () -> Bool in
      if idle <= count, threads.count < threadCount { startThread() }
      guard !threads.isEmpty, !stopping else { return false }
      if count == jobs.count { grow() }
      jobs[(head + count) % jobs.count] = Job(lane: lane, slot: slot)
      count += 1
      monitor.signal()
      return true
    }
    if !accepted { lane.perform(slot) }
  }

  /// Takes back the jobs of a lane that no worker has begun.
  ///
  /// - Returns: how many.
  func cancel(_ lane: SlowLane) -> Int {
    monitor.withLock {
      let waiting = (0..<count).compactMap { jobs[(head + $0) % jobs.count] }
      let kept = waiting.filter { $0.lane !== lane }
      for position in 0..<jobs.count { jobs[position] = position < kept.count ? kept[position] : nil }
      head = 0
      count = kept.count
      return waiting.count - kept.count
    }
  }

  /// Ends the threads once they have done what they were given.
  func stop() {
    let threads = monitor.withLock {
      stopping = true
      monitor.signalAll()
      return self.threads
    }
    for thread in threads { thread.join() }
  }

  private func grow() {
    var larger: [Job?] = Array(repeating: nil, count: jobs.count * 2)
    for position in 0..<count { larger[position] = jobs[(head + position) % jobs.count] }
    jobs = larger
    head = 0
  }

  private func startThread() {
    if let thread = try? DedicatedThread(name: "xbd-disk", { [self] in work() }) { threads.append(thread) }
  }

  private func work() {
    while let job = next() { job.lane.perform(job.slot) }
  }

  private func next() -> Job? {
    monitor.withLock {
      while count == 0 {
        if stopping { return nil }
        idle += 1
        monitor.wait()
        idle -= 1
      }
      let job = jobs[head]
      jobs[head] = nil
      head = (head + 1) % jobs.count
      count -= 1
      return job
    }
  }
}
