// SPDX-License-Identifier: Apache-2.0
//
// The numbers of Xen's interfaces, each a type of its own so that none is taken for another.

/// A domain's number (xen.h: domid_t).
public struct DomainID: RawRepresentable, Hashable, Sendable, CustomStringConvertible {
  /// 0 to 0x7FEF for a domain; the values above have special meanings in Xen.
  public let rawValue: UInt16
  /// A domain by its number.
  public init(rawValue: UInt16) { self.rawValue = rawValue }
  /// A domain by its number.
  public init(_ number: UInt16) { rawValue = number }
  /// The domain that asks, whatever its number (xen.h: DOMID_SELF).
  static let own = DomainID(0x7FF0)
  /// The control domain.
  public static let dom0 = DomainID(0)
  /// The first number that is not an ordinary domain (xen.h: DOMID_FIRST_RESERVED).
  public static let firstReserved = DomainID(0x7FF0)
  /// The number alone.
  public var description: String { String(rawValue) }
}

/// An entry of a domain's grant table: what a frontend hands to a backend so that it may map a page
/// (grant_table.h: grant_ref_t).
public struct GrantRef: RawRepresentable, Hashable, Sendable, BitwiseCopyable, CustomStringConvertible {
  /// The index of the entry.
  public let rawValue: UInt32
  /// A grant by its index.
  public init(rawValue: UInt32) { self.rawValue = rawValue }
  /// A grant by its index.
  public init(_ index: UInt32) { rawValue = index }
  /// The index alone.
  public var description: String { String(rawValue) }
}

/// The local end of an event channel (event_channel.h: evtchn_port_t).
public struct EventChannelPort: RawRepresentable, Hashable, Sendable, CustomStringConvertible {
  /// The port's number within its domain; 0 is never valid.
  public let rawValue: UInt32
  /// A port by its number.
  public init(rawValue: UInt32) { self.rawValue = rawValue }
  /// A port by its number.
  public init(_ number: UInt32) { rawValue = number }
  /// The number alone.
  public var description: String { String(rawValue) }
}

/// Where one end of a device stands in the handshake (xenbus.h: XenbusState).
public enum XenbusState: UInt8, Sendable, CaseIterable, CustomStringConvertible {
  /// The node is missing or has no meaning.
  case unknown = 0
  /// Created by the toolstack, or reset to start again.
  case initialising = 1
  /// The backend has published its features and waits for the frontend.
  case initWait = 2
  /// The frontend has published its ring and event channel.
  case initialised = 3
  /// Requests may be sent.
  case connected = 4
  /// This end wants to stop; the other should follow.
  case closing = 5
  /// This end has let go of everything.
  case closed = 6
  /// Unused by block devices.
  case reconfiguring = 7
  /// Unused by block devices.
  case reconfigured = 8

  /// The number and xenbus.h's name.
  public var description: String {
    let names = [
      "Unknown", "Initialising", "InitWait", "Initialised", "Connected", "Closing", "Closed",
      "Reconfiguring", "Reconfigured",
    ]
    return "\(rawValue) (\(names[Int(rawValue)]))"
  }
}
