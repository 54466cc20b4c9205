// SPDX-License-Identifier: Apache-2.0
//
// One place to get handles from: libxen on a Xen guest, or a domain of the loopback.

/// A Xen as one domain sees it.
///
/// Each call opens a handle of its own.
public protocol XenSystem: Sendable {
  /// For people: "libxen" or "loopback /run/…, domain 1".
  var description: String { get }
  /// Names the domain among all that processes of this machine can reach, so that two frontends of one device find
  /// each other; nil when only this process can reach it.
  var identity: String? { get }
  /// Whether the domain is the one that this process's kernel runs in, whose own drivers may have its devices.
  var sharesDevicesWithKernel: Bool { get }
  /// Opens the sharing side of grants.
  func openGrantSharing() throws(XenError) -> any GrantSharing
  /// Opens the mapping side of grants.
  func openGrantMapping() throws(XenError) -> any GrantMapping
  /// Opens a set of event channels.
  func openEventChannels() throws(XenError) -> any EventChannels
  /// Opens a connection to xenstore.
  func openXenStore() throws(XenError) -> any XenStore
  /// Told once the domain was found to be restored, or to have migrated.
  ///
  /// No event channel and no grant of before exists then. Afterwards a handle on event channels that was open may be
  /// used as before for new ports; what is done with one of its old ports has no effect, and is not an error.
  ///
  /// - Throws: `.system` when something of before cannot be let go of, and what follows from that.
  func domainWasRestored() throws(XenError)
}

extension XenSystem {
  /// Nobody else can reach it.
  public var identity: String? { nil }
  /// A Xen of its own.
  public var sharesDevicesWithKernel: Bool { false }
  /// Nothing is left of before that matters.
  public func domainWasRestored() throws(XenError) {}
}
