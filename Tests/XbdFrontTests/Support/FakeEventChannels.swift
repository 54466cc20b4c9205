// SPDX-License-Identifier: Apache-2.0
//
// One handle of event channels with Xen's rules of pending and masked, on a real eventfd.

import Platform
import SystemPackage
import Xen

/// Event channels whose other end is the test.
final class FakeEventChannels: EventChannels {
  struct State {
    var next: UInt32
    var ports: Set<EventChannelPort> = []
    var pending: Set<EventChannelPort> = []
    var masked: Set<EventChannelPort> = []
    var notifications = 0
    /// Notifications that the backend has not seen yet.
    var backendIsNotified = false
    var unmasks = 0
    var onNotify: (@Sendable () -> Void)?
  }
  private let guarded: Guarded<State>
  private let counter: EventCounter

  init(firstPort: UInt32 = 5) throws(Errno) {
    guarded = Guarded(State(next: firstPort))
    counter = try EventCounter()
  }

  var fileDescriptor: Int32 { counter.fileDescriptor }
  func with<Value>(_ body: (inout State) -> Value) -> Value { guarded.with(body) }
  var notifications: Int { with { $0.notifications } }

  /// The backend notifies us.
  func raise() {
    let deliver = with { state in
      guard let port = state.ports.first else { return false }
      state.pending.insert(port)
      return !state.masked.contains(port)
    }
    if deliver { counter.signal() }
  }

  /// Whether we notified the backend since it last asked.
  func takeBackendNotification() -> Bool {
    with { state in
      defer { state.backendIsNotified = false }
      return state.backendIsNotified
    }
  }

  func bindUnbound(remote: DomainID) throws(XenError) -> EventChannelPort {
    with { state in
      let port = EventChannelPort(state.next)
      state.next += 1
      state.ports.insert(port)
      return port
    }
  }

  func bindInterdomain(remote: DomainID, port: EventChannelPort) throws(XenError) -> EventChannelPort {
    throw XenError(.invalid, "a frontend does not bind")
  }

  func notify(_ port: EventChannelPort) throws(XenError) {
    let (known, call) = with { state -> (Bool, (@Sendable () -> Void)?) in
      guard state.ports.contains(port) else { return (false, nil) }
      state.notifications += 1
      state.backendIsNotified = true
      return (true, state.onNotify)
    }
    guard known else { throw XenError(.notFound, "port \(port) is closed") }
    call?()
  }

  func nextPending() throws(XenError) -> EventChannelPort? {
    let (port, more) = with { state -> (EventChannelPort?, Bool) in
      let port = state.pending.first { !state.masked.contains($0) }
      if let port {
        state.pending.remove(port)
        state.masked.insert(port)
      }
      return (port, state.pending.contains { !state.masked.contains($0) })
    }
    if !more { counter.drain() }
    return port
  }

  func unmask(_ port: EventChannelPort) throws(XenError) {
    let deliver = with { state in
      state.unmasks += 1
      state.masked.remove(port)
      return state.pending.contains(port)
    }
    if deliver { counter.signal() }
  }

  func unbind(_ port: EventChannelPort) throws(XenError) {
    let known = with { $0.ports.remove(port) != nil }
    guard known else { throw XenError(.notFound, "port \(port) is closed") }
  }
}
