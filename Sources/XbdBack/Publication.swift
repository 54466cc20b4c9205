// SPDX-License-Identifier: Apache-2.0
//
// Which nodes a backend publishes, and in which state it does so (blkif.h, "Backend Device Nodes"). Backends differ
// in nothing as much as in this.

/// What a backend writes into its directory, and when.
///
/// A node that is in no list is never written, so that the frontend finds blkif.h's default.
public struct Publication: Equatable, Sendable {
  /// A node, or nodes that only make sense together.
  public enum Feature: Sendable, CaseIterable {
    /// `max-ring-page-order`; not written for a single page.
    case ringPageOrder
    /// `max-ring-pages`, the deprecated twin.
    case ringPages
    /// `multi-queue-max-queues`; not written for one.
    case queues
    /// `feature-max-indirect-segments`; not written for none.
    case indirect
    /// `feature-persistent`.
    case persistent
    /// `feature-flush-cache`.
    case flush
    /// `feature-barrier`.
    case barrier
    /// `feature-discard`, and when it is 1 `discard-granularity`, `discard-alignment` and `discard-secure`.
    case discard
    /// `sectors`.
    case size
    /// `info`.
    case info
    /// `sector-size`.
    case sectorSize
    /// `physical-sector-size`.
    case physicalSectorSize
  }

  /// Written while the backend is still at Initialising.
  public var initialising: [Feature]
  /// Written with InitWait.
  public var initWait: [Feature]
  /// Written with Connected.
  public var connected: [Feature]

  /// What is written in each state.
  public init(initialising: [Feature] = [], initWait: [Feature] = [], connected: [Feature] = []) {
    self.initialising = initialising
    self.initWait = initWait
    self.connected = connected
  }

  private static let transport: [Feature] = [.ringPageOrder, .queues, .indirect]
  private static let features: [Feature] = [.persistent, .flush, .barrier, .discard]
  private static let properties: [Feature] = [.size, .info, .sectorSize, .physicalSectorSize]

  /// What concerns the ring with InitWait, the rest with Connected, as Linux does.
  public static let split = Publication(initWait: transport, connected: features + properties)
  /// All features with InitWait; the sizes with Connected.
  public static let early = Publication(initWait: transport + features, connected: properties)
  /// Everything only with Connected: the frontend sees defaults until then.
  public static let late = Publication(connected: transport + features + properties)
}
