// SPDX-License-Identifier: Apache-2.0
//
// What a domain has in xenstore, for those who look for a leak.

/// A domain's share of a xenstore.
struct XenStoreCounts {
  var connections = 0
  var watches = 0
  var transactions = 0
  var nodes = 0
}

extension XenStoreServer {
  func counts(of domain: UInt16) -> XenStoreCounts {
    var counts = XenStoreCounts()
    for connection in connections.values where connection.domain == domain {
      counts.connections += 1
      counts.watches += connection.watches.count
      counts.transactions += connection.transactions.count
    }
    tree.root.visit { _, node in
      if node.owner == domain { counts.nodes += 1 }
    }
    return counts
  }
}
