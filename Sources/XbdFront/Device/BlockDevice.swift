// SPDX-License-Identifier: Apache-2.0
//
// A block device as its user has it: connected, with its queues, until it is closed.

internal import Blkif
public import Logging
internal import Platform
internal import SystemPackage
public import Xen

/// A connected block device.
///
/// Its queues are given to the threads that own them. A control thread of its own looks after the handshake, the
/// size and the end of the device.
public final class BlockDevice: Sendable {
  /// Where the device is in xenstore.
  public let location: DeviceLocation
  /// What the backend said of the device when it connected.
  public let features: DeviceFeatures
  /// What was negotiated.
  public let transport: TransportParameters
  /// The queues, each to be used by one thread.
  public let queues: [BlockQueue]
  private let shared: DeviceShared
  private let thread: DedicatedThread

  private init(
    location: DeviceLocation, connected: DeviceShared.Connected, shared: DeviceShared, thread: DedicatedThread
  ) {
    self.location = location
    features = connected.features
    transport = connected.transport
    queues = connected.queues
    self.shared = shared
    self.thread = thread
  }

  /// Connects to a device and waits until it can be used.
  ///
  /// - Parameters:
  ///   - name: a virtual device number (51728), a name (xvdb), or the path of a frontend directory.
  ///   - system: the Xen that the device belongs to.
  ///   - options: what is wanted of the device; the backend may have less.
  ///   - logger: is told what a person should know.
  ///   - kernel: whose devices are refused, where they are this domain's.
  ///   - cancellation: a descriptor that becomes readable when the caller does not want the device any more; polled until
  ///     the device is connected, and never read.
  /// - Throws: when there is no such device, the backend does not answer in time, refuses, or says something that
  ///   makes no sense; `.cancelled` after the cancellation, with everything taken back.
  public static func connect(
    _ name: String, on system: any XenSystem, options: FrontendOptions = FrontendOptions(), logger: Logger,
    kernel: KernelDriver = KernelDriver(), cancellation: Int32? = nil
  ) throws(XbdError) -> BlockDevice {
    let store: any XenStore
    do throws(XenError) { store = try system.openXenStore() } catch {
      throw XbdError(error, during: "connecting to xenstore")
    }
    let location = try DeviceLocation(name, in: store)
    if system.sharesDevicesWithKernel { try kernel.requireFree(location.device) }
    let claim = try claim(location, of: system)
    let shared: DeviceShared
    let thread: DedicatedThread
    do throws(Errno) {
      let made = try DeviceShared(claim: claim)
      shared = made
      thread = try DedicatedThread(name: "xbd-\(location.device.number)") {
        DeviceDriver(
          system: system, store: store, location: location, options: options, logger: logger, shared: made,
          cancellation: cancellation
        ).run()
      }
    } catch {
      throw XbdError(.system, "starting the control thread of \(name): \(error)")
    }
    // The control thread keeps the time; it always comes to an outcome.
    switch shared.outcome.wait() {
    case .success(let connected)?:
      return BlockDevice(location: location, connected: connected, shared: shared, thread: thread)
    case .failure(let error)?:
      thread.join()
      throw error
    case nil:
      throw XbdError(.system, "\(name): the control thread came to no outcome")
    }
  }

  /// Makes sure that no other process of this machine drives the device.
  static func claim(
    _ location: DeviceLocation, of system: any XenSystem
  ) throws(XbdError) -> NameClaim? {
    guard let identity = system.identity else { return nil }
    do throws(Errno) {
      return try NameClaim("\(identity) vbd \(location.device.number)")
    } catch {
      guard error == .addressInUse else {
        throw XbdError(.system, "claiming \(location.device) among the processes of this machine: \(error)")
      }
      throw XbdError(
        .inUse,
        "\(location.device) is driven by another process of this machine already; stop that one first "
          + "(`ss -xlp` shows who has the name @xbd-user/…)"
      )
    }
  }

  /// Where the device stands.
  public var state: DeviceState { shared.state }

  /// Asks to be told of changes, on the control thread; the calls must not wait.
  ///
  /// - Parameters:
  ///   - change: the device closes, closed or failed.
  ///   - resize: the device has a new size, in 512-byte units.
  public func observe(
    change: @escaping @Sendable (DeviceState) -> Void,
    resize: @escaping @Sendable (_ sectorCount: UInt64) -> Void = { _ in }
  ) {
    shared.observe(change: change, resize: resize)
  }

  /// Tells the device that its backend's program has ended, which nothing in xenstore says.
  ///
  /// Whoever starts backends knows. A device that reconnects waits for another one; the nodes of the dead one are to
  /// be made anew only when the frontend has gone to state 6 or 1. Any other device fails.
  ///
  /// - Parameter sentence: what has happened, for a person.
  public func backendDied(_ sentence: String) { shared.post(.backendDied(sentence)) }

  /// Tells the device that the nodes of the backend whose death it was told of were made anew.
  ///
  /// Without this, what the dead one's state node said is waited to change: one that its successor brings back to the
  /// same state before anybody looks is told from it by this alone.
  public func backendReplaced() { shared.post(.backendReplaced) }

  /// Begins to close the device: no new requests, those in flight are waited for, then the handshake's end.
  ///
  /// The owners of the queues must go on calling `poll` until the device is closed.
  ///
  /// - Parameter limit: the most that all of it may take, if that is less than `FrontendOptions.closeTimeout`: for who
  ///   has waited for the backend already.
  public func close(within limit: Duration? = nil) {
    shared.post(.close(by: limit.map { MonotonicClock.nanoseconds() &+ $0.nanoseconds }))
  }

  deinit {
    // Nobody can reach it any more: the control thread closes it, without waiting longer than for any other.
    shared.post(.close(by: nil))
  }

  /// Waits until the device is closed, by whichever side.
  ///
  /// - Parameter milliseconds: the longest wait; nil waits for ever.
  /// - Returns: whether it is closed.
  @discardableResult
  public func waitUntilClosed(milliseconds: Int? = nil) -> Bool {
    guard shared.waitForEnd(milliseconds: milliseconds) else { return false }
    thread.join()
    return true
  }
}
