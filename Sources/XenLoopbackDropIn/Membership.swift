// SPDX-License-Identifier: Apache-2.0
//
// The process's membership in a loopback domain. XBD_LOOPBACK names the host's directory, XBD_LOOPBACK_DOMAIN the
// domain (0 when it is missing). All handles share one join, which ends with the last of them, so that a host may
// be restarted between two.

internal import Glibc
internal import Synchronization
internal import Xen
internal import XenLoopback

/// The domain that this process acts for.
enum Membership {
  private struct Current: Sendable {
    // Handles hold it.
    weak let domain: LoopbackDomain?
    let process: pid_t
  }

  private static let current = Mutex<Current?>(nil)

  /// Opens something in the domain, which is joined if this process has not done so yet.
  ///
  /// A join whose host has gone is replaced once. A child that was forked joins anew: its parent's connection is
  /// not its own.
  ///
  /// - Returns: the handle that `body` makes, as C gets it; nil after errno was set and the reason logged, if it is to be.
  @safe static func open(
    _ what: String, isLogged: Bool, _ body: (LoopbackDomain) throws(XenError) -> LibraryHandle
  ) -> OpaquePointer? {
    do throws(XenError) {
      do throws(XenError) {
        let domain = try domain(fresh: false)
        return try body(domain).keep(domain).exported()
      } catch {
        guard error.code == .disconnected else { throw error }
        let domain = try domain(fresh: true)
        return try body(domain).keep(domain).exported()
      }
    } catch {
      if isLogged { log("\(what): \(error.message)") }
      let code: Int32 =
        switch error.code {
        case .notFound: ENOENT
        case .limitReached: EMFILE
        default: number(error)
        }
      return fail(code, nil)
    }
  }

  private static func domain(fresh: Bool) throws(XenError) -> LoopbackDomain {
    let result: Result<LoopbackDomain, XenError> = current.withLock { current in
      if !fresh, let known = current, known.process == getpid(), let domain = known.domain, domain.isConnected
      {
        return .success(domain)
      }
      do throws(XenError) {
        let domain = try join()
        current = Current(domain: domain, process: getpid())
        return .success(domain)
      } catch {
        return .failure(error)
      }
    }
    return try result.get()
  }

  private static func join() throws(XenError) -> LoopbackDomain {
    guard let directory = variable("XBD_LOOPBACK"), !directory.isEmpty else {
      throw XenError(
        .notFound,
        "XBD_LOOPBACK does not name a loopback host's directory; start with `xbd-user loopback exec`")
    }
    let text = variable("XBD_LOOPBACK_DOMAIN") ?? "0"
    guard let number = UInt16(text), number < DomainID.firstReserved.rawValue else {
      throw XenError(
        .invalid, "XBD_LOOPBACK_DOMAIN is \"\(text)\"; it has to be a domain's number, 0 to 32751")
    }
    return try LoopbackDomain(joining: directory, domain: DomainID(number))
  }

  private static func variable(_ name: String) -> String? {
    // SAFETY: copied at once. A program that changes its environment in another thread meanwhile breaks C's rule, not ours.
    unsafe getenv(name).map { unsafe String(cString: $0) }
  }
}

/// A descriptor for handles that need none: the libraries promise one to call fcntl on.
func placeholderDescriptor() throws(XenError) -> Int32 {
  // SAFETY: a string that the call reads.
  let descriptor = unsafe Glibc.open("/dev/null", O_RDWR | O_CLOEXEC)
  guard descriptor >= 0 else { throw XenError(.limitReached, "no descriptor is left in this process") }
  return descriptor
}
