// SPDX-License-Identifier: Apache-2.0
//
// xengnttab.h's dma-bufs, which need a kernel driver to be shared with. The libraries beside libxengnttab and
// libxenevtchn are in CXenDropIn.

internal import CXen

/// Refused with ENOSYS.
@c @implementation
public func xengnttab_dmabuf_exp_from_refs(
  _ xgt: OpaquePointer?, _ domid: UInt32, _ flags: UInt32, _ count: UInt32, _ refs: UnsafePointer<UInt32>?,
  _ fd: UnsafeMutablePointer<UInt32>?
) -> Int32 {
  unsupported("xengnttab_dmabuf_exp_from_refs")
}

/// Refused with ENOSYS.
@c @implementation
public func xengnttab_dmabuf_exp_wait_released(
  _ xgt: OpaquePointer?, _ fd: UInt32, _ wait_to_ms: UInt32
) -> Int32 {
  unsupported("xengnttab_dmabuf_exp_wait_released")
}

/// Refused with ENOSYS.
@c @implementation
public func xengnttab_dmabuf_imp_to_refs(
  _ xgt: OpaquePointer?, _ domid: UInt32, _ fd: UInt32, _ count: UInt32, _ refs: UnsafeMutablePointer<UInt32>?
) -> Int32 {
  unsupported("xengnttab_dmabuf_imp_to_refs")
}

/// Refused with ENOSYS.
@c @implementation
public func xengnttab_dmabuf_imp_release(_ xgt: OpaquePointer?, _ fd: UInt32) -> Int32 {
  unsupported("xengnttab_dmabuf_imp_release")
}
