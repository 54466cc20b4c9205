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
}

extension XenSystem {
  /// Nobody else can reach it.
  public var identity: String? { nil }
  /// A Xen of its own.
  public var sharesDevicesWithKernel: Bool { false }
}
