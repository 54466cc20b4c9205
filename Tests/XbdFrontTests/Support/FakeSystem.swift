// SPDX-License-Identifier: Apache-2.0
//
// A whole Xen for one device: the toolstack's nodes, and a backend's half of the handshake played from a hook.

import Blkif
import Glibc
import Logging
import Platform
import Synchronization
import SystemPackage
import Testing
import Xen

@testable import XbdFront

/// Domain 7 with one disk, xvdb, whose backend is in domain 0.
final class FakeSystem: XenSystem {
  static let front = "/local/domain/7/device/vbd/51728"
  static let back = "/local/domain/0/backend/qdisk/7/51728"
  let tree = FakeTree()
  let grants = FakeGrants()
  let channels = Guarded<[FakeEventChannels]>([])
  let description = "a fake Xen"
  /// How many ports were open each time that we were told of a restore.
  let restores = Guarded<[Int]>([])

  init(backend: [String: String] = [:]) {
    for (key, value) in ["backend": Self.back, "backend-id": "0", "state": "1", "virtual-device": "51728"] {
      tree[Self.front + "/" + key] = value
    }
    let nodes = ["state": "2", "sectors": "2048", "max-ring-page-order": "4", "feature-flush-cache": "1"]
    for (key, value) in nodes.merging(backend, uniquingKeysWith: { $1 }) {
      tree[Self.back + "/" + key] = value
    }
  }

  func openGrantSharing() throws(XenError) -> any GrantSharing { grants }
  func openGrantMapping() throws(XenError) -> any GrantMapping { throw XenError(.unavailable, "no mapping") }
  func openEventChannels() throws(XenError) -> any EventChannels {
    do throws(Errno) {
      let made = try FakeEventChannels(firstPort: UInt32(channels.with { $0.count }) + 5)
      channels.with { $0.append(made) }
      return made
    } catch { throw XenError(errno: error, "eventfd") }
  }
  func openXenStore() throws(XenError) -> any XenStore {
    do throws(Errno) { return try FakeXenStore(tree, domain: 7) } catch {
      throw XenError(errno: error, "eventfd")
    }
  }

  func domainWasRestored() throws(XenError) {
    let open = channels.with { $0.reduce(0) { $0 + $1.with { $0.ports.count } } }
    restores.with { $0.append(open) }
  }

  /// Answers the frontend's states with the backend's.
  func answer(_ states: [String: String]) {
    tree.with { state in
      state.hook = { tree, path in
        guard path == Self.front + "/state", let own = tree[path], let next = states[own] else { return }
        if tree[Self.back + "/state"] != next { tree[Self.back + "/state"] = next }
      }
    }
  }
  /// A backend that does what it should.
  static let honest = ["1": "2", "3": "4", "5": "5", "6": "6"]

  var options: FrontendOptions {
    var options = FrontendOptions()
    options.poolPages = 64
    options.maxSegments = 11
    options.ringPageOrder = 0
    options.handshakeTimeout = .seconds(20)
    options.initialisingGrace = .milliseconds(20)
    options.closeTimeout = .seconds(20)
    return options
  }
  func connect(_ options: FrontendOptions? = nil) throws(XbdError) -> BlockDevice {
    try BlockDevice.connect("xvdb", on: self, options: options ?? self.options, logger: Self.logger)
  }
  /// A control thread's work, for the test's own thread to do.
  func driver(
    _ options: FrontendOptions? = nil, logger: Logger = FakeSystem.logger
  ) throws -> (DeviceDriver, DeviceShared) {
    let store = try openXenStore()
    let shared = try DeviceShared()
    let driver = DeviceDriver(
      system: self, store: store, location: try DeviceLocation("xvdb", in: store),
      options: options ?? self.options, logger: logger, shared: shared)
    return (driver, shared)
  }
  static var logger: Logger { Logger(label: "test") { _ in SwiftLogNoOpLogHandler() } }

  /// The frontend's nodes, without its directory's name.
  var frontNodes: [String: String] {
    tree.with { state in
      var result: [String: String] = [:]
      for (path, value) in state.nodes where path.hasPrefix(Self.front + "/") {
        result[String(path.dropFirst(Self.front.count + 1))] = String(decoding: value, as: UTF8.self)
      }
      return result
    }
  }
  /// The states that the frontend wrote, in order.
  var ownStates: [String] {
    tree.with { state in
      state.states.filter { $0.hasPrefix(Self.front) }.map { String($0.dropFirst(Self.front.count + 7)) }
    }
  }
  func setBackend(_ state: String) { tree[Self.back + "/state"] = state }
}

/// Waits for something that another thread brings about.
func eventually(_ what: String, _ condition: () -> Bool, sourceLocation: SourceLocation = #_sourceLocation) {
  for _ in 0..<30_000 {
    if condition() { return }
    usleep(1000)
  }
  Issue.record("never: \(what)", sourceLocation: sourceLocation)
}
