// SPDX-License-Identifier: Apache-2.0
//
// What /dev/xen/evtchn needs after `xl restore` or a migration. The domain has another table of event channels then:
// Linux's own are made anew, those of the device are not, and the device still lists them. Linux's evtchn.c (seen in
// 6.1: `kernel BUG at drivers/xen/evtchn.c:422`) stops whoever has it close such a port, by unbinding or by closing
// the descriptor, so also a process that ends: it never comes to its end, and whoever waits for it waits for ever. If
// the port's number is somebody else's by then, a kernel driver's perhaps, it is theirs that is closed.
//
// The same driver forgets all ports of a descriptor when it is asked for one of a number that it has there already
// (it says EEXIST and takes the new one back). Xen gives numbers from the lowest free one, so that this can be brought
// about: `forget` does, and then nothing is left to be closed.

internal import CXen
internal import Platform
internal import Synchronization
internal import SystemPackage

/// The event channel handles that one `LibXenSystem` has open.
final class LibXenOpenChannels: Sendable {
  private struct Reference {
    weak var channels: LibXenEventChannels?
  }

  private let handles = Mutex<[ObjectIdentifier: Reference]>([:])

  func add(_ channels: LibXenEventChannels) {
    handles.withLock { $0[ObjectIdentifier(channels)] = Reference(channels: channels) }
  }

  func remove(_ identity: ObjectIdentifier) {
    handles.withLock { _ = $0.removeValue(forKey: identity) }
  }

  /// Has the driver forget the ports of every handle; the domain has none of them any more.
  ///
  /// - Throws: `.system` naming the ports that it would not forget.
  func forgetPorts() throws(XenError) {
    // Held from here on, so that none of them is closed meanwhile.
    let handles = handles.withLock { $0.values.compactMap(\.channels) }
    let lost = handles.map { (handle: $0, ports: $0.losePorts()) }.filter { !$0.ports.isEmpty }
    guard let highest = lost.flatMap(\.ports).max() else { return }
    let fresh = try LibXenEventChannels()
    // Whoever takes every free number knows which one is given next.
    var free: Set<UInt32> = []
    while let port = try? fresh.bindUnbound(remote: .own).rawValue {
      free.insert(port)
      guard port < highest else { break }
    }
    var left: [UInt32] = []
    for (handle, ports) in lost {
      var isForgotten = false
      for port in ports.intersection(free) where !isForgotten {
        guard (try? fresh.unbind(EventChannelPort(port))) != nil else { continue }
        isForgotten = handle.forgetPorts()
        // The number stays taken, so that the next handle is given its own.
        _ = try? fresh.bindUnbound(remote: .own)
      }
      if !isForgotten { left += ports }
    }
    guard left.isEmpty else {
      let list = left.sorted().map { "\($0)" }.joined(separator: ", ")
      throw XenError(
        .system,
        "event channels of before the restore (\(list)) stay in Linux's evtchn driver, because others have their numbers: it may not let this process end"
      )
    }
  }
}
