// SPDX-License-Identifier: Apache-2.0
//
// Sockets inherited from whoever started the program: LISTEN_PID, LISTEN_FDS and LISTEN_FDNAMES as in
// sd_listen_fds(3). `nbdinfo [ SERVER … ]` and systemd both do it this way.

internal import CXen
internal import Glibc
/// Why inherited sockets cannot be used.
public enum SocketActivationError: Error, Equatable, Sendable, CustomStringConvertible {
  /// LISTEN_FDS is not a number, or not a sensible one.
  case malformedCount(String)
  /// A descriptor that should be a socket is not open, or is something else.
  case notASocket(Int32)

  /// A sentence: what is wrong, and what to do.
  public var description: String {
    switch self {
    case .malformedCount(let value):
      "LISTEN_FDS is \"\(value)\", which is no number of sockets; unset it to listen on a socket of our own"
    case .notASocket(let descriptor):
      "LISTEN_FDS promises a socket at descriptor \(descriptor), but there is none; unset it to listen on a socket of our own"
    }
  }
}

/// The sockets that a service manager passed.
public enum SocketActivation {
  /// The first inherited descriptor (SD_LISTEN_FDS_START).
  public static let firstDescriptor: Int32 = 3
  private static let variables = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"]

  /// Reads what the three variables say.
  ///
  /// - Parameters:
  ///   - environment: looks a variable up.
  ///   - processID: this process; sockets meant for another one are not ours.
  /// - Returns: the sockets' names in the order of their descriptors; empty when nothing was passed to us.
  public static func names(
    in environment: (String) -> String?, processID: Int32
  ) throws(SocketActivationError) -> [String] {
    guard let pid = environment("LISTEN_PID"), Int32(pid) == processID,
      let text = environment("LISTEN_FDS")
    else { return [] }
    guard let count = Int(text), (0...1024).contains(count) else { throw .malformedCount(text) }
    let given = (environment("LISTEN_FDNAMES") ?? "").split(separator: ":", omittingEmptySubsequences: false)
    return (0..<count).map { index in
      index < given.count && !given[index].isEmpty ? String(given[index]) : "unknown"
    }
  }

  /// Takes the inherited sockets and removes the variables, so that no child takes them too.
  ///
  /// Call it once, before other threads run: it changes the environment.
  ///
  /// - Returns: the descriptors, close-on-exec and owned by the caller; empty without activation.
  public static func take() throws(SocketActivationError) -> [Int32] {
    // SAFETY of both: no other thread runs, as the caller promises, so the environment is nobody else's; a variable is
    // copied where it stands.
    defer { for variable in variables { unsafe unsetenv(variable) } }
    let names = try names(
      in: { variable in unsafe getenv(variable).map { unsafe String(cString: $0) } }, processID: getpid())
    var sockets: [Int32] = []
    for index in names.indices {
      let descriptor = firstDescriptor + Int32(index)
      var status = stat()
      // SAFETY: the kernel fills a local variable.
      guard unsafe fstat(descriptor, &status) == 0, status.st_mode & S_IFMT == S_IFSOCK else {
        throw .notASocket(descriptor)
      }
      _ = cxen_set_cloexec(descriptor, 1)
      sockets.append(descriptor)
    }
    return sockets
  }
}
