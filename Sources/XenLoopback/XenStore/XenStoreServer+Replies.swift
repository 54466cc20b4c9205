// SPDX-License-Identifier: Apache-2.0
//
// The bodies of replies that are more than a word: lists of names, whole or in parts, and permissions
// (docs/misc/xenstore.txt: DIRECTORY, DIRECTORY_PART, GET_PERMS).

extension XenStoreServer {
  // Sorted, so that the parts of a list that is asked for in pieces fit together.
  static func names(_ node: XenStoreNode) -> [UInt8] {
    node.children.keys.sorted().flatMap { Array($0.utf8) + [0] }
  }

  static func part(_ node: XenStoreNode, _ offset: Int) -> [UInt8] {
    let all = names(node)
    var reply = Array("\(node.generation)\0".utf8)
    guard offset < all.count else { return reply + [0] }
    let room = XenStoreLimits.payloadBytes - reply.count - 1
    var end = offset
    while end < all.count {
      guard let stop = all[end...].firstIndex(of: 0), stop + 1 - offset < room else { break }
      end = stop + 1
    }
    reply.append(contentsOf: all[offset..<end])
    if end == all.count { reply.append(0) }
    return reply
  }

  static func wire(_ rights: [XenStoreRight]) -> [UInt8] {
    rights.flatMap { Array($0.wire.utf8) + [0] }
  }
}
