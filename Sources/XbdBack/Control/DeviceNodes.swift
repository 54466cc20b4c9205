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

  var secureDiscard: Bool {
    discard != .off && configuration.secureDiscard && storage.canDiscardSecurely
  }

  /// What concerns the ring.
  var transport: [(String, String)] {
    var nodes: [(String, String)] = []
    if configuration.maxRingPageOrder > 0 {
      nodes.append((Key.maxRingPageOrder, String(configuration.maxRingPageOrder)))
      if configuration.publishMaxRingPages {
        nodes.append((Key.maxRingPages, String(1 << configuration.maxRingPageOrder)))
      }
    }
    if configuration.maxQueues > 1 {
      nodes.append((Key.multiQueueMaxQueues, String(configuration.maxQueues)))
    }
    if configuration.maxIndirectSegments > 0 {
      nodes.append((Key.featureMaxIndirectSegments, String(configuration.maxIndirectSegments)))
    }
    return nodes
  }

  /// What the disk and the data path can do.
  var features: [(String, String)] {
    func flag(_ support: BackendConfiguration.Support) -> String { support == .off ? "0" : "1" }
    let persistent = configuration.persistentGrants && configuration.dataPath == .map
    var nodes = [
      (Key.featurePersistent, persistent ? "1" : "0"),
      (Key.featureFlushCache, flag(configuration.flush)),
      (Key.featureBarrier, flag(configuration.barrier)),
      (Key.featureDiscard, flag(discard)),
    ]
    if discard != .off {
      let granularity = configuration.discardGranularity ?? storage.discardGranularity ?? 0
      nodes.append((Key.discardGranularity, String(max(granularity, configuration.sectorSize))))
      nodes.append((Key.discardAlignment, String(configuration.discardAlignment)))
      nodes.append((Key.discardSecure, secureDiscard ? "1" : "0"))
    }
    return nodes
  }

  /// What the disk is.
  var properties: [(String, String)] {
    var info: DiskInfo = []
    if configuration.cdrom { info.insert(.cdrom) }
    if configuration.removable { info.insert(.removable) }
    if readOnly { info.insert(.readOnly) }
    return [
      (Key.sectors, String(Self.sectorCount(storage.byteCount, configuration))),
      (Key.info, String(info.rawValue)),
      (Key.sectorSize, String(configuration.sectorSize)),
      (Key.physicalSectorSize, String(configuration.physicalSectorSize ?? configuration.sectorSize)),
    ]
  }

  /// What is written before InitWait.
  var beforeInitWait: [(String, String)] {
    switch configuration.publication {
    case .split: transport
    case .early: transport + features
    case .late: []
    }
  }

  /// What is written with Connected.
  var withConnected: [(String, String)] {
    switch configuration.publication {
    case .split: features + properties
    case .early: properties
    case .late: transport + features + properties
    }
  }
}
