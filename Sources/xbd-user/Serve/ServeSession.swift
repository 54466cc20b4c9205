// SPDX-License-Identifier: Apache-2.0
//
// A device while it is served: the NBD service over its queues, and the order in which everything ends.
//
//   stop: clients are answered and flushed ─► the device closes (drain, 5, 6) ─► backend ─► host

import Glibc
import NBD
import Platform
import Synchronization
import XbdFront

/// Why a session is over.
enum SessionOutcome {
  /// A signal asked for it.
  case stopped(by: Int32)
  /// The command of `--run` has ended.
  case child(Int32)
  /// The device went away by itself.
  case deviceGone(String)
}

final class ServeSession {
  private let device: BlockDevice
  private let server: Server
  private let embedded: EmbeddedLoopback?
  private let outside: OutsideBackend?
  private let reconnects: Bool
  private let changed: Changed
  /// How the backend ended that was to be the next one; nil once there is one.
  private var failedReplacement: String?
  /// Nobody runs the queues any more.
  private var isOver = false

  /// Starts to serve.
  init(
    device: BlockDevice, sockets: [ListeningSocket], service: ServiceArguments, readOnly: Bool,
    embedded: EmbeddedLoopback?, outside: OutsideBackend?, reconnects: Bool
  ) throws {
    self.device = device
    self.embedded = embedded
    self.outside = outside
    self.reconnects = reconnects
    let changed = Changed(try EventCounter())
    self.changed = changed
    device.observe(change: { _ in changed.counter.signal() })
    // Something may have changed before anybody looked.
    changed.counter.signal()
    // Each queue goes to its worker's thread, and comes back to this one when the server has stopped.
    nonisolated(unsafe) let targets: [any BlockTarget] = device.queues.map { FrontTarget($0) }
    do {
      server = try Server(
        sockets: sockets, targets: targets,
        export: Export(
          name: service.exportName, description: "\(device.location.device) of Xen", isReadOnly: readOnly),
        maximumConnections: service.maxConnections, configuration: service.configuration)
    } catch {
      throw Failure(
        "cannot start the NBD service for \(device.location.device): \(error); it needs a thread and four descriptors "
          + "for each queue (ulimit -u, ulimit -n)")
    }
  }

  private final class Changed: Sendable {
    let counter: EventCounter
    init(_ counter: consuming EventCounter) { self.counter = counter }
  }

  /// Waits for a signal, the child's end, or the device's; a backend of ours that ends is followed by another one if
  /// that is wanted.
  func wait(signals: borrowing Signals, child: ChildCommand?) -> SessionOutcome {
    var descriptors = [
      pollfd(fd: signals.fileDescriptor, events: Int16(POLLIN), revents: 0),
      pollfd(fd: changed.counter.fileDescriptor, events: Int16(POLLIN), revents: 0),
      pollfd(fd: outside?.lostDescriptor ?? -1, events: Int16(POLLIN), revents: 0),
    ]
    while true {
      _ = poll(&descriptors, 3, outside?.isBeingReplaced == true ? 20 : -1)
      changed.counter.drain()
      while let signal = signals.next() {
        switch signal {
        case SIGCHLD:
          if let status = child?.exitStatus() { return .child(status) }
        case SIGUSR1:
          if let text = try? JSONText.encode(report()) { Console.note(text) }
        default:
          child?.terminate()
          return .stopped(by: signal)
        }
      }
      switch device.state {
      case .connected: failedReplacement = nil
      case .connecting, .reconnecting, .closing: break
      case .closed: return gone("\(device.location.device) was taken away by its backend", child)
      case .failed(let error):
        return gone([error.message, failedReplacement].compactMap(\.self).joined(separator: "; "), child)
      }
      if let sentence = lookAfterBackend() { return gone(sentence, child) }
    }
  }

  /// What a command works with is not there any more.
  private func gone(_ sentence: String, _ child: ChildCommand?) -> SessionOutcome {
    child?.terminate()
    return .deviceGone(sentence)
  }

  /// Tells the device of a backend that has ended, and sees to the next one.
  ///
  /// - Returns: why that is not possible.
  private func lookAfterBackend() -> String? {
    guard let outside else { return nil }
    if let sentence = outside.takeDeath() {
      let isAgain = device.state == .reconnecting
      device.backendDied(sentence)
      if reconnects {
        if isAgain {
          failedReplacement = sentence
          outside.replaceLater()
        } else {
          outside.replace()
        }
      }
    }
    do {
      try outside.replaceIfPossible(on: device)
      return nil
    } catch {
      return "no backend can take the place of the one that ended: \(error)"
    }
  }

  /// How long the end may take for a backend that does not answer, of which clients have up to half.
  static let patience = Duration.seconds(10)

  /// Ends everything in order.
  ///
  /// - Returns: what was lost by it, for a person; nil when nothing was.
  @discardableResult
  func stop() -> String? {
    let began = ContinuousClock.now
    // Nobody would answer what is in flight; closing ends it.
    var isAlone = device.state == .reconnecting
    if isAlone { device.close() }
    let outcomes = server.stop()
    // It may have been lost just now: its queues know first.
    if device.state == .reconnecting || device.queues.contains(where: { $0.violation != nil }) {
      isAlone = true
    }
    Self.close(device, within: max(.seconds(1), Self.patience - (ContinuousClock.now - began)))
    embedded?.stop()
    isOver = true
    return whatIsLost(outcomes, isAlone: isAlone)
  }

  /// What the ends of the workers say of the last flush, for a person; nil when nothing was lost.
  private func whatIsLost(_ outcomes: [WorkerOutcome], isAlone: Bool) -> String? {
    let lost = "what was written since the last flush that was answered may be lost"
    if isAlone {
      guard outcomes.contains(where: { $0.flushWasDue && $0.finalFlush != .okay }), hasChanged else {
        return nil
      }
      return "\(device.location.device) had no backend to be flushed by at the end: \(lost)"
    }
    for outcome in outcomes where outcome.flushWasDue {
      switch outcome.finalFlush {
      // What cannot flush has no cache.
      case .okay?, .notSupported?, .readOnly?: continue
      case .ioError?, .noSpace?:
        return
          "\(device.location.device) could not be flushed at the end: \(lost); the backend's log says why"
      case .shutdown?:
        if hasChanged { return "\(device.location.device) was gone before it was flushed: \(lost)" }
      case nil:
        if hasChanged { return "\(device.location.device) did not answer the flush at the end: \(lost)" }
      }
    }
    return nil
  }

  /// Something was asked of the device that changes it; when nobody runs its queues any more.
  private var hasChanged: Bool {
    device.queues.contains {
      let counters = $0.counters
      return counters.writes + counters.writeZeroes + counters.discards > 0
    }
  }

  /// Closes a device whose queues nobody uses any more: closing needs somebody to run them.
  ///
  /// What a silent backend still has, and the closing ends, has nobody left who would want to know.
  static func close(_ device: BlockDevice, within limit: Duration) {
    for queue in device.queues { queue.onCompletion = { _ in } }
    device.close(within: limit)
    while !device.waitUntilClosed(milliseconds: 1) {
      let now = MonotonicClock.nanoseconds()
      for queue in device.queues {
        _ = queue.keepTime(now)
        repeat { queue.poll() } while queue.hasMore
      }
    }
  }

  /// What every layer has counted.
  func report() -> ServiceReport {
    ServiceReport(
      service: server.statistics(), queues: device.queues.map { isOver ? $0.counters : $0.snapshot() },
      backend: embedded?.statistics
    )
  }
}
