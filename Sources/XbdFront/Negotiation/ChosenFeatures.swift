// SPDX-License-Identifier: Apache-2.0
//
// What is used of a backend's features with given options: by the queues, and said by a probe beforehand.

extension DeviceFeatures {
  /// How writes are made durable.
  public func flush(_ options: FrontendOptions) -> FlushMethod {
    if options.useFlush, flushCache { return .flushCache }
    return options.useBarrier && barrier ? .barrier : .none
  }

  /// What may be discarded; nil for nothing.
  public func discard(_ options: FrontendOptions) -> DiscardLimits? {
    guard options.useDiscard, let discard, discard.secure || !options.secureDiscard else { return nil }
    return discard
  }

  /// Whether the backend may keep the frontend's pages mapped (blkif.h: feature-persistent).
  public func keepsGrants(_ options: FrontendOptions) -> Bool { persistent && options.offersPersistentGrants }
}

extension FrontendOptions {
  /// Whether the backend is told that it may keep grants mapped.
  var offersPersistentGrants: Bool { persistent && grants == .persistent }
}
