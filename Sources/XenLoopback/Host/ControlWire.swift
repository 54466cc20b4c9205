// SPDX-License-Identifier: Apache-2.0
//
// What processes ask a host over its control socket: 32 bytes there, 32 bytes back, with descriptors beside them.
// Only what is rare goes this way: joining, looking a domain up, creating and binding ports.

/// What is asked for.
enum ControlOperation: UInt32 {
  /// a = domain. Back: a = join number, b = its place in the domain's table, descriptors tables and pages.
  case join = 1
  /// a = domain. Back: descriptors tables and pages.
  case lookUp = 2
  /// With an eventfd. Back: a = handle number, b = its place in the domain's table.
  case openHandle = 3
  /// a = handle.
  case closeHandle = 4
  /// a = handle, b = remote domain. Back: a = port.
  case bindUnbound = 5
  /// a = handle, b = remote domain, c = remote port. Back: a = port.
  case bindInterdomain = 6
  /// a = handle, b = port.
  case closePort = 7
  /// a = domain, b = its serial, c = handle. Back: the handle's eventfd.
  case handleDescriptor = 8
  /// a = port of the own domain, b = the handle it has to belong to: EVTCHNOP_send on its behalf, for unmap
  /// notifications.
  case send = 9
  /// a = domain, b = page limit, c = maptrack frames.
  case createDomain = 10
  /// a = domain.
  case destroyDomain = 11
  /// a = domain, b = page limit.
  case setPageLimit = 12
  /// a = domain. Back: a = pages shared, b = page limit, c = ports in use, d = joins.
  case status = 13
  /// a = domain: its nodes are in xenstore, those who watch @introduceDomain may look.
  case introduceDomain = 14
  /// a = domain: its grants and event channels mean nothing any more.
  case invalidateDomain = 15
  /// a = domain. Back: a = that domain's number or the next higher one's; ENOENT when there is none.
  case nextDomain = 20
  /// a = domain. Back: a = its connections to xenstore, b = their watches, c = their transactions, d = nodes it owns.
  case storeStatus = 21
}

/// A request or a reply; `code` is the operation or, in a reply, an errno with 0 for success.
struct ControlMessage {
  var code: UInt32
  var a: UInt32 = 0
  var b: UInt32 = 0
  var c: UInt32 = 0
  var d: UInt32 = 0

  static let byteCount = 32

  init(_ code: UInt32, a: UInt32 = 0, b: UInt32 = 0, c: UInt32 = 0, d: UInt32 = 0) {
    self.code = code
    self.a = a
    self.b = b
    self.c = c
    self.d = d
  }

  init(_ operation: ControlOperation, a: UInt32 = 0, b: UInt32 = 0, c: UInt32 = 0, d: UInt32 = 0) {
    self.init(operation.rawValue, a: a, b: b, c: c, d: d)
  }

  /// Reads a message from its 32 bytes.
  init(_ bytes: [UInt8]) {
    self.init(bytes.number(0), a: bytes.number(1), b: bytes.number(2), c: bytes.number(3), d: bytes.number(4))
  }

  /// The 32 bytes of the message.
  var bytes: [UInt8] {
    var bytes: [UInt8] = []
    bytes.reserveCapacity(Self.byteCount)
    for number in [code, a, b, c, d, 0, 0, 0] { bytes.append(number: number) }
    return bytes
  }
}
