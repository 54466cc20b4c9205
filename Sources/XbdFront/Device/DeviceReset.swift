// SPDX-License-Identifier: Apache-2.0
//
// Closing what a frontend that died has left behind, without connecting (`xbd-user reset`). The steps are those with
// which every connection begins (Negotiation/FrontendStateMachine.swift, "resetting").

internal import Blkif
internal import Glibc
public import Logging
internal import Platform
public import Xen

extension BlockDevice {
  /// Brings a device that nobody drives back to Initialising, through Closing and Closed, and removes the nodes of its
  /// ring.
  ///
  /// - Parameters:
  ///   - name: a virtual device number (51728), a name (xvdb), or the path of a frontend directory.
  ///   - system: the Xen that the device belongs to.
  ///   - timeout: how long the backend may take for each step.
  ///   - logger: is told of each step.
  ///   - kernel: whose devices are refused, where they are this domain's.
  /// - Returns: both states in the end.
  /// - Throws: when somebody drives the device, or the backend does not let go.
  @discardableResult
  public static func reset(
    _ name: String, on system: any XenSystem, timeout: Duration = .seconds(30), logger: Logger,
    kernel: KernelDriver = KernelDriver()
  ) throws(XbdError) -> (frontend: XenbusState, backend: XenbusState) {
    let store: any XenStore
    do throws(XenError) { store = try system.openXenStore() } catch {
      throw XbdError(error, during: "connecting to xenstore")
    }
    let location = try DeviceLocation(name, in: store)
    if system.sharesDevicesWithKernel { try kernel.requireFree(location.device) }
    let claim = try claim(location, of: system)
    let steps = ResetSteps(store: store, location: location, timeout: timeout, logger: logger)
    do throws(XenError) {
      try steps.run()
    } catch {
      throw XbdError(error, during: "resetting \(location.frontend)")
    }
    _ = claim
    if let failure = steps.failure { throw failure }
    return (.initialising, steps.settled)
  }
}

/// One reset.
private final class ResetSteps {
  let store: any XenStore
  let location: DeviceLocation
  let timeout: Duration
  let logger: Logger
  var machine = FrontendStateMachine()
  var failure: XbdError?
  private var isDone = false
  /// The backend's state once it has seen ours.
  private(set) var settled = XenbusState.unknown

  init(store: any XenStore, location: DeviceLocation, timeout: Duration, logger: Logger) {
    self.store = store
    self.location = location
    self.timeout = timeout
    self.logger = logger
  }

  func run() throws(XenError) {
    try store.watch(location.backendState, token: "backend")
    try perform(
      machine.handle(
        .started(
          own: try DeviceDriver.state(location.frontendState, in: store),
          backend: try DeviceDriver.state(location.backendState, in: store))))
    var deadline = MonotonicClock.nanoseconds() &+ timeout.nanoseconds
    while !isDone, failure == nil {
      let now = MonotonicClock.nanoseconds()
      let phase = machine.phase
      if now >= deadline {
        try perform(machine.handle(.timedOut))
      } else {
        waitForWatch(deadline - now)
        var moved = false
        while try store.nextWatchEvent() != nil { moved = true }
        if moved {
          try perform(machine.handle(.backendState(try DeviceDriver.state(location.backendState, in: store))))
        }
      }
      if machine.phase != phase { deadline = MonotonicClock.nanoseconds() &+ timeout.nanoseconds }
    }
    settled = try DeviceDriver.state(location.backendState, in: store)
    if isDone { try waitUntilOpen() }
  }

  /// Waits until the backend has left Closed.
  ///
  /// Linux's blkfront closes for good when it is bound while blkback is still there. A backend that stays is no error:
  /// not every one offers itself again.
  private func waitUntilOpen() throws(XenError) {
    let deadline = MonotonicClock.nanoseconds() &+ min(timeout, .seconds(5)).nanoseconds
    while settled == .closed {
      let now = MonotonicClock.nanoseconds()
      guard now < deadline else { return }
      waitForWatch(deadline - now)
      while try store.nextWatchEvent() != nil {}
      settled = try DeviceDriver.state(location.backendState, in: store)
    }
  }

  /// Waits until a watch may have fired, or the time is over.
  private func waitForWatch(_ nanoseconds: UInt64) {
    var events = pollfd(fd: store.fileDescriptor, events: Int16(POLLIN), revents: 0)
    // SAFETY: one descriptor, in a local.
    _ = unsafe poll(&events, 1, Int32(clamping: nanoseconds / 1_000_000 + 1))
  }

  private func perform(_ actions: [FrontendStateMachine.Action]) throws(XenError) {
    for action in actions where !isDone {
      switch action {
      case .setState(let state):
        logger.info("\(location.frontend): \(state), backend \(machine.backend)")
        try store.transaction { (transaction) throws(XenError) in
          // Only once the backend has let go may the ring's name go.
          if state == .initialising { try TransportWriter.removeStale(location, transaction) }
          try transaction.write(location.frontendState, String(state.rawValue))
        }
        // What follows would be a connection.
        isDone = state == .initialising
      case .fail(let error):
        failure = XbdError(
          error.code, "\(location.frontend): \(error.message) (backend at \(location.backend))")
        return
      default: break
      }
    }
  }
}
