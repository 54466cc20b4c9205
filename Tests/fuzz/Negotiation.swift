// SPDX-License-Identifier: Apache-2.0
//
// What the two ends read from each other's xenstore directories, and the frontend's state machine under any order
// of events. The first byte chooses which.

import Blkif
import Xen

@testable import XbdBack
@testable import XbdFront

func negotiation(_ input: inout FuzzInput) {
  switch input.below(4) {
  case 0: backendNodes(&input)
  case 1: frontendNodes(&input)
  case 2: stateMachine(&input)
  default: words(&input)
  }
}

/// Keys by number; one that nobody knows at the end.
private let keys = [
  Key.maxRingPageOrder, Key.maxRingPages, Key.multiQueueMaxQueues, Key.featureMaxIndirectSegments,
  Key.sectors,
  Key.sectorSize, Key.physicalSectorSize, Key.info, Key.featureBarrier, Key.featureFlushCache,
  Key.featurePersistent,
  Key.featureDiscard, Key.discardGranularity, Key.discardAlignment, Key.discardSecure, Key.protocol,
  Key.ringPageOrder, Key.numRingPages, Key.multiQueueNumQueues, Key.ringRef, Key.ringRef(0), Key.ringRef(1),
  Key.ringRef(2), Key.ringRef(3), Key.eventChannel, Key.queue(0) + "/" + Key.ringRef,
  Key.queue(0) + "/" + Key.eventChannel, Key.queue(1) + "/" + Key.ringRef,
  Key.queue(1) + "/" + Key.eventChannel,
  "unknown",
]

/// Nodes: a key's number, the length of its value, the value.
private func nodes(_ input: inout FuzzInput) -> [String: [UInt8]] {
  var nodes: [String: [UInt8]] = [:]
  while !input.isAtEnd {
    let key = keys[input.below(keys.count)]
    nodes[key] = input.take(input.below(24))
  }
  return nodes
}

private func backendNodes(_ input: inout FuzzInput) {
  var options = FrontendOptions()
  options.queueCount = input.below(9)
  options.maxSegments = Int(input.half())
  options.poolPages = Int(input.half())
  options.ringPageOrder = input.below(8)
  let nodes = nodes(&input)
  if let transport = try? TransportFeatures(nodes) {
    let parameters = TransportParameters(options, transport)
    guard (0...4).contains(parameters.ringPageOrder), parameters.queueCount >= 1,
      (1...BlkIf.maxIndirectSegments).contains(parameters.maxSegments), parameters.poolPagesPerQueue >= 1,
      // Any request finds its pages and the pages that list them.
      parameters.maxSegments + BlkIf.indirectPages(forSegments: parameters.maxSegments)
        <= max(parameters.poolPagesPerQueue, 2)
    else { violated("negotiated parameters are within their ranges: \(parameters)") }
  }
  if let device = try? DeviceFeatures(nodes) {
    guard device.sectorSize.nonzeroBitCount == 1, (512...4096).contains(device.sectorSize),
      device.sectorCount <= UInt64(Int64.max) >> 9, device.physicalSectorSize % device.sectorSize == 0,
      device.sectorCount % UInt64(device.sectorSize / 512) == 0
    else { violated("a device's properties are within their ranges: \(device)") }
    if let discard = device.discard {
      guard discard.granularity > 0, discard.alignment < discard.granularity else {
        violated("discard limits are within their ranges: \(discard)")
      }
    }
  }
}

/// A directory that answers from a dictionary.
private final class FixedNodes: XenStoreOperations {
  private let nodes: [String: [UInt8]]
  init(_ nodes: [String: [UInt8]]) { self.nodes = nodes }
  func readBytes(_ path: String) throws(XenError) -> [UInt8]? { nodes[String(path.dropFirst(2))] }
  func write(_ path: String, _ value: [UInt8]) throws(XenError) {}
  func list(_ path: String) throws(XenError) -> [String]? { nil }
  func makeDirectory(_ path: String) throws(XenError) {}
  func remove(_ path: String) throws(XenError) {}
  func setPermissions(_ path: String, _ permissions: [XenStorePermission]) throws(XenError) {}
  func permissions(_ path: String) throws(XenError) -> [XenStorePermission]? { nil }
}

private func frontendNodes(_ input: inout FuzzInput) {
  var configuration = BackendConfiguration()
  configuration.maxRingPageOrder = input.below(5)
  configuration.maxQueues = 1 + input.below(8)
  let store = FixedNodes(nodes(&input))
  let published = try? FrontendParameters(from: store, directory: "f", configuration: configuration)
  guard let published else { return }
  guard (1...configuration.maxQueues).contains(published.rings.count) else {
    violated("as many rings as were offered at most: \(published.rings.count)")
  }
  for ring in published.rings {
    let pages = ring.references.count
    guard pages.nonzeroBitCount == 1, pages <= 1 << configuration.maxRingPageOrder,
      ring.eventChannel.rawValue != 0
    else { violated("a ring has a power of two of pages within what was offered: \(ring)") }
  }
}

private func stateMachine(_ input: inout FuzzInput) {
  var machine = FrontendStateMachine(reconnects: input.flag())
  func state(_ input: inout FuzzInput) -> XenbusState {
    XenbusState(rawValue: UInt8(input.below(9))) ?? .unknown
  }
  let own = state(&input)
  var events: [FrontendStateMachine.Event] = [.started(own: own, backend: state(&input))]
  var isPublished = false
  while !events.isEmpty {
    let event = events.removeFirst()
    let actions = machine.handle(event)
    guard actions.count <= 64 else {
      violated("an event leads to few actions: \(actions.count) for \(event)")
    }
    for action in actions {
      switch action {
      case .publish: isPublished = true
      case .connect:
        guard isPublished else { violated("nothing is connected that was not published") }
      case .release: isPublished = false
      default: break
      }
    }
    if input.isAtEnd { return }
    switch input.below(15) {
    case 8: events.append(.online(input.flag()))
    case 9: events.append(.backendDied("d"))
    case 10: events.append(.suspended)
    case 11:
      let own = state(&input)
      events.append(.resumed(own: own, backend: state(&input)))
    case 12: events.append(.reconnectExpired("r"))
    case 14: events.append(.backendReplaced(state(&input)))
    case 13: events.append(.storeLost(XbdError(.system, "s")))
    case 0, 1: events.append(.backendState(state(&input)))
    case 2: events.append(.graceExpired)
    case 3: events.append(.timedOut)
    case 4: events.append(.closeRequested)
    case 5: events.append(.drained)
    case 6: events.append(input.flag() ? .directoryRemoved : .violation("v"))
    default: events.append(.actionFailed(XbdError(.malformed, "m")))
    }
  }
}

/// Numbers, sizes and device names as people and peers write them.
private func words(_ input: inout FuzzInput) {
  let bytes = input.rest()
  let text = String(decoding: bytes, as: UTF8.self)
  let parsed = try? Decimal.parse(bytes)
  let isNumber = !bytes.isEmpty && bytes.count <= 20 && bytes.allSatisfy { (48...57).contains($0) }
  guard parsed == (isNumber ? UInt64(text) : nil) else { violated("a number is what it says: \(bytes)") }
  if let device = VirtualDevice(text), let name = device.name {
    guard VirtualDevice(name)?.name == name else { violated("a device's name names it: \(text), \(name)") }
  }
  _ = try? ByteSize.parse(text)
  _ = try? StorageSpecification(parsing: text)
}
