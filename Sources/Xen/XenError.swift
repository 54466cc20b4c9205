// SPDX-License-Identifier: Apache-2.0
//
// What the control plane throws: a code to decide on, where it happened, and one sentence for a person.

public import SystemPackage

/// A failure of grants, event channels or xenstore.
public struct XenError: Error, Sendable, CustomStringConvertible {
  /// What kind of failure it is; what control flow decides on.
  public struct Code: RawRepresentable, Hashable, Sendable {
    /// A stable name.
    public let rawValue: String
    /// A code by its name.
    public init(rawValue: String) { self.rawValue = rawValue }

    /// There is no Xen here: a device file or socket cannot be opened.
    public static let unavailable = Code(rawValue: "unavailable")
    /// No more pages, ports, grants or nodes may be had (gntalloc's limit, a quota).
    public static let limitReached = Code(rawValue: "limitReached")
    /// The grant, port, node or domain does not exist.
    public static let notFound = Code(rawValue: "notFound")
    /// It exists, but not for this domain, or not for writing.
    public static let denied = Code(rawValue: "denied")
    /// A transaction met a change by somebody else and must be run again.
    public static let conflict = Code(rawValue: "conflict")
    /// A value that makes no sense: a malformed path, a reference that is no grant.
    public static let invalid = Code(rawValue: "invalid")
    /// The connection to Xen or to the loopback's host is gone.
    public static let disconnected = Code(rawValue: "disconnected")
    /// Anything else the system said.
    public static let system = Code(rawValue: "system")
  }

  /// What kind of failure it is.
  public let code: Code
  /// One sentence: what happened, where (path, domain, reference, port) and, where there is something to do, what.
  public let message: String
  /// What the system call or library call left in `errno`, if one failed.
  public let errno: Errno?

  /// An error with its sentence.
  public init(_ code: Code, _ message: String, errno: Errno? = nil) {
    self.code = code
    self.message = message
    self.errno = errno
  }

  /// An error from a failed call; the code follows from the errno.
  ///
  /// - Parameters:
  ///   - errno: what the call left.
  ///   - message: what was being done and where, without the reason, which is appended.
  public init(errno: Errno, _ message: String) {
    let code: Code =
      switch errno {
      case .noSpace, .noMemory, .tooManyOpenFiles: .limitReached
      case .noSuchFileOrDirectory, .noSuchAddressOrDevice: .notFound
      case .permissionDenied, .notPermitted: .denied
      case .resourceTemporarilyUnavailable, .wouldBlock: .conflict
      case .invalidArgument: .invalid
      case .brokenPipe, .connectionReset, .badFileDescriptor: .disconnected
      default: .system
      }
    self.init(code, "\(message): \(errno)", errno: errno)
  }

  /// The sentence.
  public var description: String { message }
}
