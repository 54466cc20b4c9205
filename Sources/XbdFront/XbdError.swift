// SPDX-License-Identifier: Apache-2.0

public import Xen

/// A failure to find, connect or close a device.
public struct XbdError: Error, Equatable, Sendable, CustomStringConvertible {
  /// What kind of failure it is; what control flow decides on.
  public struct Code: RawRepresentable, Hashable, Sendable {
    /// A stable name.
    public let rawValue: String
    /// A code by its name.
    public init(rawValue: String) { self.rawValue = rawValue }

    /// There is no such device.
    public static let noDevice = Code(rawValue: "noDevice")
    /// Another driver has it: the kernel's blkfront, or another frontend in user space.
    public static let inUse = Code(rawValue: "inUse")
    /// A node of the backend is missing or its value makes no sense.
    public static let malformed = Code(rawValue: "malformed")
    /// The backend did not get as far as it should in time.
    public static let timedOut = Code(rawValue: "timedOut")
    /// The backend closed, vanished or refused.
    public static let backendGone = Code(rawValue: "backendGone")
    /// The caller did not want the device any more.
    public static let cancelled = Code(rawValue: "cancelled")
    /// The backend broke the block protocol.
    public static let violation = Code(rawValue: "violation")
    /// Grants, event channels, xenstore or the system failed.
    public static let system = Code(rawValue: "system")
  }

  /// What kind of failure it is.
  public let code: Code
  /// One sentence: what happened, where (path, key, value) and, where there is something to do, what.
  public let message: String

  /// An error with its sentence.
  public init(_ code: Code, _ message: String) {
    self.code = code
    self.message = message
  }

  /// What a failure of the seam means for the device.
  public init(_ error: XenError, during what: String) {
    self.init(.system, "\(what): \(error.message)")
  }

  /// The sentence.
  public var description: String { message }
}
