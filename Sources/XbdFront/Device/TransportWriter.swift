// SPDX-License-Identifier: Apache-2.0
//
// What the frontend writes into its directory, in one transaction (blkif.h: "Frontend XenBus Nodes"). What an
// earlier connection may have left there is removed first: a backend that finds `ring-page-order` beside a
// `ring-ref` maps the wrong pages.

internal import Blkif
internal import Xen

struct TransportWriter {
  let location: DeviceLocation
  let options: FrontendOptions
  let parameters: TransportParameters

  /// Writes everything and goes to Initialised.
  func write(_ connections: [QueueConnection], to store: any XenStore) throws(XenError) {
    try store.transaction { (transaction) throws(XenError) in
      try Self.removeStale(location, transaction)
      for connection in connections {
        let directory =
          connections.count == 1
          ? location.frontend : location.frontend + "/" + Key.queue(connection.control.queue)
        try write(connection, to: transaction, in: directory)
      }
      if connections.count > 1 {
        try put(transaction, Key.multiQueueNumQueues, connections.count)
      }
      if parameters.ringPageOrder > 0 {
        try put(transaction, Key.ringPageOrder, parameters.ringPageOrder)
        try put(transaction, Key.numRingPages, 1 << parameters.ringPageOrder)
      }
      try transaction.write(location.frontend + "/" + Key.protocol, options.abi.rawValue)
      // Grants that end with their request must not be kept mapped.
      try put(
        transaction, Key.featurePersistent, options.offersPersistentGrants ? 1 : 0)
      try put(transaction, Key.state, Int(XenbusState.initialised.rawValue))
    }
  }

  private func write(
    _ connection: QueueConnection, to transaction: any XenStoreOperations, in directory: String
  ) throws(XenError) {
    let references = connection.ringPages.references
    if references.count == 1 {
      try transaction.write(directory + "/" + Key.ringRef, references[0].description)
    } else {
      for (page, reference) in references.enumerated() {
        try transaction.write(directory + "/" + Key.ringRef(page), reference.description)
      }
    }
    try transaction.write(directory + "/" + Key.eventChannel, connection.port.description)
  }

  private func put(
    _ transaction: any XenStoreOperations, _ key: String, _ value: Int
  ) throws(XenError) {
    try transaction.write(location.frontend + "/" + key, String(value))
  }

  /// Removes what names a ring.
  static func removeStale(
    _ location: DeviceLocation, _ transaction: any XenStoreOperations
  ) throws(XenError) {
    for name in try transaction.list(location.frontend) ?? [] {
      let stale =
        name.hasPrefix(Key.ringRef) || name.hasPrefix("queue-")
        || [Key.ringPageOrder, Key.numRingPages, Key.eventChannel, Key.multiQueueNumQueues].contains(name)
      if stale { try transaction.remove(location.frontend + "/" + name) }
    }
  }
}
