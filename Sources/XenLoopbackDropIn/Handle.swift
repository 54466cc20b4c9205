// SPDX-License-Identifier: Apache-2.0
//
// A library's handle: an object here, a pointer without a meaning for the program. What C promises with such a pointer
// is what Xen's headers ask for: it came from an open function, and no close function has had it.

internal import Glibc
internal import XenLoopback

/// What is behind a library's handle, kept alive by the pointer that the program has.
class LibraryHandle {
  /// Who opened it; a forked child lets go of its parent's handle without a word to the host.
  private let process = getpid()
  /// The join that it shares with the process's other handles.
  private var domain: LoopbackDomain?

  /// Keeps the process's join for as long as the handle lives.
  final func keep(_ domain: LoopbackDomain) -> Self {
    self.domain = domain
    return self
  }

  /// Gives the handle to C.
  @safe final func exported() -> OpaquePointer {
    // SAFETY: the reference that goes with the pointer keeps the object until `close` takes it back.
    unsafe OpaquePointer(Unmanaged.passRetained(self).toOpaque())
  }

  /// Takes the handle back from C; what it holds is given back with the last reference.
  @safe static func close(_ pointer: OpaquePointer?) -> Int32 {
    // SAFETY: from `exported`, and for the last time, as the headers have it.
    guard let handle = unsafe object(pointer) else { return 0 }
    if unsafe handle._withUnsafeGuaranteedRef({ $0.process }) == getpid() { unsafe handle.release() }
    return 0
  }

  /// The handle behind a pointer that C has.
  ///
  /// - Returns: nil for NULL, and for a handle of another kind: C has one type for xengnttab_handle and
  ///   xengntshr_handle, and does not complain.
  @safe static func behind(_ pointer: OpaquePointer?) -> Self? {
    // SAFETY: from `exported`, and not closed yet, as the headers have it.
    unsafe object(pointer)?.takeUnretainedValue() as? Self
  }

  private static func object(_ pointer: OpaquePointer?) -> Unmanaged<LibraryHandle>? {
    // SAFETY: whatever its kind, it is of this class; followed by those above.
    unsafe pointer.map { unsafe Unmanaged.fromOpaque(UnsafeRawPointer($0)) }
  }
}
