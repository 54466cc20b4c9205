// SPDX-License-Identifier: Apache-2.0
//
// A device whose size changes while it is served (blkif.h: "sectors"; Linux xen_vbd_resize; QEMU xen_block_resize_cb).

internal import Blkif
internal import Xen

extension BackendDevice {
  /// Looks whether the storage's size was changed from outside, and tells the frontend.
  public func refreshSize() throws(StorageError) {
    try backend.control.withLock { () throws(StorageError) in
      let before = storage.byteCount
      if try storage.refreshByteCount() != before { publishSize() }
    }
  }

  /// Makes the disk larger or smaller and tells the frontend.
  ///
  /// - Parameter byteCount: a multiple of the physical sector.
  public func resize(to byteCount: UInt64) throws(StorageError) {
    try backend.control.withLock { () throws(StorageError) in
      let unit = configuration.physicalSectorSize ?? configuration.sectorSize
      try StorageOptions.check(byteCount, multipleOf: unit, what: "\(storage)")
      // Nobody may reach behind the end while it moves down.
      if byteCount < storage.byteCount { setSectorCount(byteCount) }
      do throws(StorageError) {
        try storage.resize(to: byteCount)
      } catch {
        setSectorCount(storage.byteCount)
        throw error
      }
      publishSize()
    }
  }

  private func setSectorCount(_ byteCount: UInt64) {
    let sectors = DeviceNodes.sectorCount(byteCount, configuration)
    for queue in queues { queue.queue.setSectorCount(sectors) }
  }

  /// The size first, then the state again: its watch is what tells the frontend (blkif.h; Linux xen_vbd_resize).
  private func publishSize() {
    setSectorCount(storage.byteCount)
    let publication = configuration.publication
    let node = (Key.sectors, DeviceNodes.publishedSize(storage.byteCount, configuration))
    switch machine.own {
    case .initialising where publication.initialising.contains(.size),
      .initWait where (publication.initialising + publication.initWait).contains(.size),
      .connected where queues.isEmpty:
      // Nobody has connected yet, and whoever does may not find it written again.
      publish([node], nil)
    case .connected:
      switch configuration.sizeChange {
      case .atOnce: publish([node], .connected)
      case .inTwoSteps:
        publish([node], nil)
        announce()
      case .silent: break
      }
    default: break
    }
  }
}
