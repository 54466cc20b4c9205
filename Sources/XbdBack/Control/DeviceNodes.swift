// SPDX-License-Identifier: Apache-2.0
//
// The nodes that a backend publishes, and when (blkif.h, "Backend Device Nodes"; Linux xen_blkbk_probe, connect).

internal import Blkif
internal import Xen

/// What is written into a backend's directory.
struct DeviceNodes {
  let configuration: BackendConfiguration
  let storage: any Storage
  /// After the toolstack's `mode` and `discard-enable`.
  let readOnly: Bool
  let discard: BackendConfiguration.Support

  /// The size in 512-byte sectors; a size that has no whole number of sectors ends with its last one.
  static func sectorCount(_ byteCount: UInt64, _ configuration: BackendConfiguration) -> UInt64 {
    let unit = UInt64(configuration.physicalSectorSize ?? configuration.sectorSize)
    return byteCount / unit * unit / UInt64(BlkIf.sectorSize)
  }

  /// The size as the `sectors` node has it.
  static func publishedSize(_ byteCount: UInt64, _ configuration: BackendConfiguration) -> String {
    let sectors = sectorCount(byteCount, configuration)
    guard configuration.countsInSectorSize else { return String(sectors) }
    return String(sectors / UInt64(configuration.sectorSize / BlkIf.sectorSize))
  }

  var secureDiscard: Bool {
    discard != .off && configuration.secureDiscard && storage.canDiscardSecurely
  }

  /// What is written before the frontend has published anything.
  func nodes(_ features: [Publication.Feature]) -> [(String, String)] {
    features.flatMap { nodes($0) }
  }

  private func nodes(_ feature: Publication.Feature) -> [(String, String)] {
    let order = configuration.maxRingPageOrder
    switch feature {
    case .ringPageOrder: return order > 0 ? [(Key.maxRingPageOrder, String(order))] : []
    case .ringPages: return order > 0 ? [(Key.maxRingPages, String(1 << order))] : []
    case .queues:
      return configuration.maxQueues > 1 ? [(Key.multiQueueMaxQueues, String(configuration.maxQueues))] : []
    case .indirect:
      let segments = configuration.maxIndirectSegments
      return segments > 0 ? [(Key.featureMaxIndirectSegments, String(segments))] : []
    case .persistent:
      return flag(Key.featurePersistent, configuration.persistentGrants && configuration.dataPath == .map)
    case .flush: return flag(Key.featureFlushCache, configuration.flush != .off)
    case .barrier: return flag(Key.featureBarrier, configuration.barrier != .off)
    case .discard: return flag(Key.featureDiscard, discard != .off) + discardLimits
    case .size: return [(Key.sectors, Self.publishedSize(storage.byteCount, configuration))]
    case .info: return [(Key.info, String(info.rawValue))]
    case .sectorSize: return [(Key.sectorSize, String(configuration.sectorSize))]
    case .physicalSectorSize:
      return [(Key.physicalSectorSize, String(configuration.physicalSectorSize ?? configuration.sectorSize))]
    }
  }

  private func flag(_ key: String, _ isOn: Bool) -> [(String, String)] {
    isOn ? [(key, "1")] : configuration.publishesZeroes ? [(key, "0")] : []
  }

  private var discardLimits: [(String, String)] {
    guard discard != .off else { return [] }
    var granularity = configuration.discardGranularity ?? storage.discardGranularity ?? 0
    if granularity > 0 || configuration.discardGranularity == nil {
      granularity = max(granularity, configuration.sectorSize)
    }
    return [
      (Key.discardGranularity, String(granularity)),
      (Key.discardAlignment, String(configuration.discardAlignment)),
    ]
      + (configuration.secureDiscard || configuration.publishesZeroes
        ? flag(Key.discardSecure, secureDiscard) : [])
  }

  private var info: DiskInfo {
    var info: DiskInfo = []
    if configuration.cdrom { info.insert(.cdrom) }
    if configuration.removable { info.insert(.removable) }
    if readOnly { info.insert(.readOnly) }
    return info
  }
}
