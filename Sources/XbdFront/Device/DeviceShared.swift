// SPDX-License-Identifier: Apache-2.0
//
// What the control thread and everybody else know of a device together.

internal import Platform
internal import Synchronization
internal import SystemPackage

/// Where a device stands, for its user.
public enum DeviceState: Sendable, Equatable {
  /// The handshake is under way.
  case connecting
  /// Requests are served.
  case connected
  /// The backend has gone; requests wait until one has connected again.
  case reconnecting
  /// No new requests; those in flight are finished.
  case closing
  /// Closed in order.
  case closed
  /// Failed, or broken by the backend; everything fails.
  case failed(XbdError)
}

/// A device's outcome and its letter box.
final class DeviceShared: Sendable {
  struct Connected: Sendable {
    let queues: [BlockQueue]
    let features: DeviceFeatures
    let transport: TransportParameters
  }

  private struct State {
    var state = DeviceState.connecting
    var sectorCount: UInt64 = 0
    var messages: [DriverMessage] = []
    var onChange: (@Sendable (DeviceState) -> Void)?
    var onResize: (@Sendable (UInt64) -> Void)?
  }

  private let guarded = Mutex(State())
  /// Given up when the device is closed.
  private let claim: Mutex<NameClaim?>
  private let mailbox: EventCounter
  let outcome: Handoff<Result<Connected, XbdError>>
  private let end: Handoff<Bool>

  init(claim: consuming NameClaim? = nil) throws(Errno) {
    self.claim = Mutex(claim)
    mailbox = try EventCounter()
    outcome = try Handoff()
    end = try Handoff()
  }

  var state: DeviceState { guarded.withLock { $0.state } }
  var isConnected: Bool { if case .success? = outcome.current { true } else { false } }

  // MARK: Letters to the control thread

  var mailboxDescriptor: Int32 { mailbox.fileDescriptor }

  func post(_ message: DriverMessage) {
    guarded.withLock { $0.messages.append(message) }
    mailbox.signal()
  }

  func takeMessages() -> [DriverMessage] {
    mailbox.drain()
    return guarded.withLock { state in
      defer { state.messages = [] }
      return state.messages
    }
  }

  // MARK: From the control thread

  func connect(queues: [BlockQueue], features: DeviceFeatures, transport: TransportParameters) {
    guarded.withLock { $0.sectorCount = features.sectorCount }
    set(.connected)
    outcome.put(.success(Connected(queues: queues, features: features, transport: transport)))
  }

  /// The device is not wanted any more; true only before it has come to anything.
  func cancel() { outcome.put(.failure(XbdError(.cancelled, "connecting was given up on request"))) }

  /// The queues go on; the device may have another size.
  func reconnected(_ features: DeviceFeatures) {
    set(.connected)
    resize(features.sectorCount)
  }

  func fail(_ error: XbdError) {
    set(.failed(error))
    outcome.put(.failure(error))
  }

  func set(_ new: DeviceState) {
    let tell = guarded.withLock { state -> (@Sendable (DeviceState) -> Void)? in
      if case .failed = state.state { return nil }
      state.state = new
      return state.onChange
    }
    tell?(new)
  }

  /// Tells of a size that is a new one.
  func resize(_ sectors: UInt64) {
    let tell = guarded.withLock { state -> (@Sendable (UInt64) -> Void)? in
      guard state.sectorCount != sectors else { return nil }
      state.sectorCount = sectors
      return state.onResize
    }
    tell?(sectors)
  }

  func finished() {
    set(.closed)
    claim.withLock { $0 = nil }
    outcome.put(.failure(XbdError(.backendGone, "the device was closed before it connected")))
    end.put(true)
  }

  // MARK: From users

  func observe(
    change: @escaping @Sendable (DeviceState) -> Void, resize: @escaping @Sendable (UInt64) -> Void
  ) {
    guarded.withLock {
      $0.onChange = change
      $0.onResize = resize
    }
  }

  func waitForEnd(milliseconds: Int?) -> Bool { end.wait(milliseconds: milliseconds) ?? false }
}
