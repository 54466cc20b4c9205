// SPDX-License-Identifier: Apache-2.0
//
// A loopback host with a frontend's domain and one disk of it, for one test.

internal import TestSupport
internal import Glibc
internal import Platform
internal import Synchronization
internal import SystemPackage
public import Xen
public import XenLoopback

/// A machine that is gone with this value.
public final class HostileMachine: Sendable {
  /// The frontend's domain.
  public static let domain = DomainID(7)
  /// Its Xen.
  public let host: LoopbackHost
  /// Its toolstack.
  public let toolstack: LoopbackToolstack
  /// Its disk.
  public let device: LoopbackBlockDevice

  private static let devices = Atomic<UInt32>(0)

  /// - Parameters:
  ///   - trusted: what the toolstack's `trusted` node says.
  ///   - pageLimit: gntalloc's limit of the frontend's domain.
  public init(trusted: Bool = true, pageLimit: Int = LoopbackDefaults.pageLimit) throws(XenError) {
    host = try LoopbackHost(directory: Self.place())
    toolstack = try LoopbackToolstack(directory: host.directory)
    try toolstack.createDomain(Self.domain, pageLimit: pageLimit)
    // A number of its own for each machine names the control thread, whose processor time tests look at.
    let number = Self.devices.wrappingAdd(1, ordering: .relaxed).oldValue
    var device = LoopbackBlockDevice(
      virtualDevice: 1 << 28 | (number % 4000 + 100) << 8, name: "hostile", frontend: Self.domain)
    device.isTrusted = trusted
    self.device = device
    try toolstack.attach(device)
  }

  deinit {
    host.stop()
    _ = rmdir(host.directory)
  }

  /// The frontend's domain, joined.
  public func frontend() throws(XenError) -> LoopbackDomain {
    try LoopbackDomain(joining: host.directory, domain: Self.domain)
  }

  private static func place() throws(XenError) -> String {
    do throws(Errno) { return try makeTemporaryPath("hostile") } catch {
      throw XenError(errno: error, "making a path for a host")
    }
  }
}
