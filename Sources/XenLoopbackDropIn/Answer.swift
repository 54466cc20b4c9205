// SPDX-License-Identifier: Apache-2.0
//
// How a C function of Xen's libraries says no: errno, a value that means failure, and, where the header says "Logs
// errors", a line on stderr.

internal import CXen
internal import CXenDropIn
internal import Glibc
internal import SystemPackage
internal import Xen

/// Sets errno and returns what means failure; the last thing that a function does.
@safe func fail<Value>(_ code: Int32, _ value: Value) -> Value {
  errno = code
  return value
}

/// Writes one line to stderr, in one call.
func log(_ sentence: String) {
  // SAFETY: a string that the call reads.
  unsafe xenloopback_log(sentence)
}

/// Says that a function does not exist on the loopback.
///
/// - Returns: -1, with ENOSYS in errno.
func unsupported(_ function: String) -> Int32 {
  // SAFETY: a string that the call reads.
  unsafe xenloopback_unsupported(function)
}

/// The errno for a failure of the seam.
///
/// - Parameter refused: what the driver answers when Xen refuses: gntdev and evtchn both say EINVAL.
func number(_ error: XenError, refused: Int32 = EINVAL) -> Int32 {
  switch error.code {
  case .limitReached: ENOSPC
  case .notFound, .denied, .invalid: refused
  case .disconnected, .unavailable: ENXIO
  default: error.errno.map(\.rawValue) ?? EIO
  }
}
