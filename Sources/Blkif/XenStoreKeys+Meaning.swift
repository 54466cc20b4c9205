// SPDX-License-Identifier: Apache-2.0

extension Key {
  /// What a key means, in a few words for a person (blkif.h).
  ///
  /// - Returns: nil for a key that block devices do not have.
  public static func meaning(of key: String) -> String? {
    if let known = meanings[key] { return known }
    if key.hasPrefix(ringRef) { return "grant of one page of a ring of several" }
    if key.hasPrefix("queue-") { return "directory of one of several queues" }
    return nil
  }

  private static let meanings = [
    state: "where this end stands in the handshake",
    backend: "path of the backend's directory",
    backendID: "domain of the backend",
    virtualDevice: "virtual device number",
    deviceType: "disk or cdrom",
    trusted: "0: pages are cleared of what earlier requests left in them",
    ringRef: "grant of the ring's only page",
    ringPageOrder: "log2 of the ring's pages",
    numRingPages: "pages of the ring (deprecated)",
    eventChannel: "port that the backend binds to",
    `protocol`: "layout of requests",
    multiQueueNumQueues: "queues in use",
    featurePersistent: "grants are reused and may stay mapped",
    frontend: "path of the frontend's directory",
    frontendID: "domain of the frontend",
    online: "0: the toolstack wants the device gone once it is closed",
    mode: "r: read-only, w: writable (private to the backend)",
    params: "what is served (private to the backend)",
    discardEnable: "0: discard must not be offered",
    featureBarrier: "write barriers are accepted",
    featureFlushCache: "flushes are accepted",
    featureDiscard: "discards are accepted",
    discardAlignment: "offset of the first extent that can be discarded, in bytes",
    discardGranularity: "size of an extent that can be discarded, in bytes; 0: not known",
    discardSecure: "secure discards are honoured",
    featureMaxIndirectSegments: "segments that an indirect request may have",
    maxRingPageOrder: "log2 of the largest ring, in pages",
    maxRingPages: "largest ring, in pages (deprecated)",
    multiQueueMaxQueues: "queues that the backend serves",
    sectors: "size in units of 512 bytes",
    sectorSize: "logical sector in bytes: what requests are aligned to",
    physicalSectorSize: "physical sector in bytes",
    info: "1: CD-ROM, 2: removable, 4: read-only",
    "type": "kind of storage (private to the backend)",
    "removable": "the medium can be taken out (private to the backend)",
    "bootable": "a boot loader may use it (private to the toolstack)",
    "dev": "name that the toolstack uses for the device",
    "physical-device": "major and minor number, hexadecimal (private to the backend)",
    "physical-device-path": "what the hotplug script made of params",
    "hotplug-status": "whether the hotplug script has run",
    "script": "the hotplug script (private to the toolstack)",
    "specification": "xen, or virtio for another kind of disk (private to the toolstack)",
    "direct-io-safe": "O_DIRECT may be used (private to the backend)",
  ]
}
