// SPDX-License-Identifier: Apache-2.0
//
// What becomes of a backend and of the frontend's domain: killed, ended, replaced, migrated; and what is left behind.

import Blkif
import Glibc
import Platform
import Testing
import XbdBack
import XbdFront
import Xen
import XenLoopback

extension Pair {
  /// The backend's process is killed: half of what it had is done, nothing of it is answered, and nobody says so.
  ///
  /// The queues must not be polled before the frontend has been told (`mournBackend`, `migrate`): here the process that
  /// would not answer is this one, and its last answers are in the ring.
  func killBackend() {
    process.die()
    disk.lose()
    served.close()
    backend.stop()
    disk.forgetHeld()
    expectNoRudeGuest()
  }

  /// Tells the device that its backend's program has ended, as who started that does.
  func mournBackend() throws {
    guard let device else { throw PairFailure(description: "not connected") }
    device.backendDied("it was killed")
    try wait("the device has noticed") { device.state != .connected }
  }

  /// Starts another backend as soon as the frontend has left the ring; the nodes are made anew.
  func replaceBackend(_ configuration: BackendConfiguration) throws {
    guard turn(until: { ["6", "1"].contains(try? frontNode("state")) }) else {
      throw PairFailure(
        description: "\(profile): the frontend has not closed; \(standing)")
    }
    try toolstack.renewBackend(nodes)
    device?.backendReplaced()
    // NetBSD's and MirageOS's are gone for good when they find a frontend at Closed.
    try wait("the frontend has begun anew") { (try? frontNode("state")) == "1" }
    try startBackend(configuration)
  }

  /// The backend ends as its program does that is told to: it asks the frontend to close, and serves until then.
  func endBackend() throws {
    let served = served
    let thread = try DedicatedThread(name: "ending") { served.close(waiting: 60_000) }
    let isOver = turn { served.isRemoved }
    thread.join()
    #expect(isOver, "\(standing)")
    try wait("the frontend has begun anew") { (try? frontNode("state")) == "1" }
    backend.stop()
    expectNoRudeGuest()
  }

  /// The domain migrates: everything that it shared and bound is void, and its devices are made anew.
  ///
  /// What the old backend still does is not looked at: the queues are polled again when they know.
  func migrate() throws {
    guard let device else { throw PairFailure(description: "not connected") }
    try toolstack.migrate(system.id)
    try wait("the device has noticed") { device.state == .reconnecting }
    // Each lets go of its ring.
    pollAll()
  }

  /// Waits until everything is in the ring that finds room there, and the backend has taken all of it.
  func settle() {
    guard let device else { return }
    pollAll()
    let isSettled = turn {
      let issued = device.queues.reduce(0) { $0 + $1.counters.directRequests + $1.counters.indirectRequests }
      return issued == taken
    }
    #expect(isSettled, "\(profile)")
  }

  /// Requests that the present backend has taken.
  var taken: UInt64 {
    let statistics = served.statistics
    return statistics.reads + statistics.writes + statistics.flushes + statistics.barriers
      + statistics.discards
  }

  /// Where everything stands, for whoever reads of a failure.
  var standing: String {
    let states = ["front \((try? frontNode("state")) ?? "-")", "back \((try? node("state")) ?? "-")"]
    return
      "\(driving), \(device.map { "\($0.state)" } ?? "no device"), nodes \(states), backend \(served.state), removed \(served.isRemoved), \(disk.held) held"
  }

  /// Waits for something that comes about without the queues being polled.
  func wait(_ what: String, _ condition: () -> Bool) throws {
    let deadline = MonotonicClock.nanoseconds() + 30_000_000_000
    while !condition() {
      guard MonotonicClock.nanoseconds() < deadline else {
        throw PairFailure(description: "\(profile): waited for this in vain: \(what); \(standing)")
      }
      usleep(500)
    }
  }

  /// The device has been given up, and its error says this.
  func expectFailed(because reason: String) {
    guard case .failed(let error)? = device?.state else {
      Issue.record("\(standing)")
      return
    }
    #expect(error.message.contains(reason), "\(error)")
  }

  /// Nothing is shared, mapped or bound any more; after the device and its queues were let go of.
  func expectNothingLeft() throws {
    func left() throws -> [Int] {
      try LoopbackDomainSurvey.all(in: host.directory).map {
        $0.pagesShared + $0.grants + $0.grantsMapped + $0.mappings + $0.ports
      }
    }
    #expect(device == nil)
    // The backend lets go on a thread of its own.
    do {
      try wait("nothing is shared, mapped or bound") { (try? left()) == [0, 0] }
    } catch {
      Issue.record("\(error): \(try LoopbackDomainSurvey.all(in: host.directory))")
    }
  }
}
