// SPDX-License-Identifier: Apache-2.0
//
// Event channels: how one domain tells another to look at a ring.

/// A handle on event channels (xenevtchn.h; on Linux /dev/xen/evtchn).
///
/// What every implementation guarantees, and the conformance tests check:
/// * A new unbound port can be bound by the named domain only, once. Binding sets the *binder's* port pending,
///   because notifications may have been lost before.
/// * `notify` makes the other end pending; while it is pending already, or masked, nothing is lost and nothing is
///   counted: any number of notifications is one event, or two if some came after Linux had taken the first one off
///   the hypervisor's hands and before it was asked for it.
/// * `notify` on a port whose other end is not bound yet, or has been closed, succeeds and is dropped.
/// * `nextPending` gives a pending port once and leaves it masked; events that arrive then are delivered after
///   `unmask`.
/// * The descriptor is readable while `nextPending` would give a port.
/// * Closing one end leaves the other end's port in existence, unbound again.
///
/// One thread consumes events (`nextPending`, `unmask`); `notify` may be called from any thread.
public protocol EventChannels: AnyObject, Sendable {
  /// Readable (poll, epoll) while an unmasked port is pending. Owned by the handle.
  var fileDescriptor: Int32 { get }

  /// Creates a port that another domain may bind to (EVTCHNOP_alloc_unbound).
  ///
  /// - Returns: the local port; its number is what goes into xenstore.
  func bindUnbound(remote: DomainID) throws(XenError) -> EventChannelPort

  /// Binds to a port that another domain created for ours (EVTCHNOP_bind_interdomain).
  ///
  /// - Returns: the local port, which is pending at once.
  /// - Throws: `.notFound`, `.denied` or `.invalid` when that port is not ours to bind.
  func bindInterdomain(remote: DomainID, port: EventChannelPort) throws(XenError) -> EventChannelPort

  /// Tells the other end (EVTCHNOP_send).
  func notify(_ port: EventChannelPort) throws(XenError)

  /// Takes a pending port without waiting.
  ///
  /// - Returns: the port, masked now; nil when none is pending.
  func nextPending() throws(XenError) -> EventChannelPort?

  /// Lets a port deliver events again.
  func unmask(_ port: EventChannelPort) throws(XenError)

  /// Closes a port of this handle.
  func unbind(_ port: EventChannelPort) throws(XenError)
}
