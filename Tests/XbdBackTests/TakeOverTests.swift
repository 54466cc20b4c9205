// SPDX-License-Identifier: Apache-2.0
//
// A device whose nodes are there already: a toolstack's, or those of a backend that died.

import TestSupport
import Blkif
import Glibc
import Testing
import Xen

@testable import XbdBack

@Suite struct TakeOverTests {
  typealias Action = XenbusMachine.Action

  @Test(arguments: [XenbusState.connected, .closing])
  func theRingOfADeadBackendIsNotTouched(left: XenbusState) {
    for frontend in [XenbusState.initialised, .connected] {
      var machine = XenbusMachine(takingOver: .state(left))
      #expect(machine.frontend(.state(frontend), online: true) == [.offer(.initWait)])
      #expect(machine.own == .initWait && machine.isAbandoned)
      #expect(machine.frontend(.state(.connected), online: true).isEmpty)
      // It begins again: from then on all is as usual.
      #expect(machine.frontend(.state(.initialising), online: true).isEmpty)
      #expect(machine.frontend(.state(.initialised), online: true) == [.disconnect, .connect])
    }
  }

  @Test func aFrontendThatHoldsOnToADeadRingIsAskedToCloseAfterAWhile() {
    var machine = XenbusMachine(takingOver: .state(.connected))
    _ = machine.frontend(.state(.connected), online: true)
    guard case .complain = machine.patienceOver().first else {
      Issue.record("nothing is said")
      return
    }
    #expect(machine.own == .closing)
    #expect(machine.frontend(.state(.closed), online: true) == [.disconnect, .announce])
    #expect(machine.frontend(.state(.initialising), online: true) == [.disconnect, .offer(.initWait)])
    #expect(machine.frontend(.state(.initialised), online: true) == [.disconnect, .connect])
    #expect(machine.patienceOver().isEmpty)
  }

  @Test(arguments: [XenbusState.initialising, .initWait, .initialised, .closed])
  func aFrontendThatWaitsForABackendIsConnected(left: XenbusState) {
    var machine = XenbusMachine(takingOver: .state(left))
    #expect(
      machine.frontend(.state(.initialised), online: true) == [.disconnect, .offer(.initWait), .connect])
  }

  @Test func overXenstoreFeaturesAreOfferedAndThenTheFrontendIsAskedToClose() throws {
    try withBackend { frontend, backend in
      try frontend.publish()
      frontend.set("state", "4")
      frontend.xen.write("\(TestFrontend.back)/state", "4")
      let mapped = frontend.xen.mappedPages
      let device = try backend.add(
        directory: TestFrontend.back, storage: try MemoryStorage(byteCount: 1 << 20),
        configuration: .colocated { $0.abandonedMilliseconds = 50 })
      #expect(frontend.backState == "2")
      #expect(eventually { frontend.backState == "5" })
      #expect(frontend.errorNode?.contains("has died") == true)
      #expect(frontend.xen.mappedPages == mapped)
      frontend.set("state", "6")
      #expect(eventually { frontend.backState == "6" })
      frontend.set("state", "1")
      #expect(eventually { frontend.backState == "2" })
      try frontend.publish()
      #expect(eventually { device.state == .connected })
    }
  }

  @Test func aDeviceWithoutAToolstackEndsWithItsFrontend() throws {
    try withBackend { frontend, backend in
      let device = try backend.add(
        directory: TestFrontend.back, storage: try MemoryStorage(byteCount: 1 << 20), endsWithFrontend: true)
      frontend.xen.remove("/local/domain/1/device")
      #expect(eventually { device.isRemoved })
      #expect(frontend.backState == "6")
    }
  }

  @Test func directoriesAreReadFromABackendsPath() throws {
    let absolute = try DeviceDirectories(backendPath: "/local/domain/3/backend/vbd/7/51728", own: .dom0)
    #expect(
      absolute
        == DeviceDirectories(
          device: VirtualDevice(number: 51728), of: DomainID(7), servedBy: DomainID(3), kind: "vbd"))
    #expect(absolute.frontendPath == "/local/domain/7/device/vbd/51728")
    let relative = try DeviceDirectories(backendPath: "backend/qdisk/7/51728", own: DomainID(5))
    #expect(relative.backendPath == "/local/domain/5/backend/qdisk/7/51728")
    for path in [
      "", "/", "backend/vbd/1", "/local/domain/0/backend/vbd/1", "/local/domain/x/backend/vbd/1/51728",
      "/local/domain/0/device/vbd/51728", "/local/domain/0/backend/vbd/1/51728/state",
      "/local/domain/0/backend//1/51728", "/local/domain/0/backend/vbd/40000/51728",
    ] {
      #expect(throws: XenError.self, "\(path)") { _ = try DeviceDirectories(backendPath: path, own: .dom0) }
    }
  }

  @Test func nodesAreCreatedOnceAndFoundAfterwards() throws {
    let xen = FakeXen(pageCount: 1)
    let store = FakeStore(xen, .dom0)
    // The fake cannot list domains; a device of the own domain needs no look.
    let place = DeviceDirectories(
      device: VirtualDevice(number: 51728), of: .dom0, servedBy: .dom0, kind: "xbd")
    #expect(try place.create(in: store, parameters: "disk.img", readOnly: true) == .created)
    for (key, value) in [
      "frontend": place.frontendPath, "frontend-id": "0", "online": "1", "state": "1", "mode": "r",
      "dev": "xvdb",
      "params": "disk.img", "hotplug-status": "connected",
    ] { #expect(xen.text("\(place.backendPath)/\(key)") == value, "\(key)") }
    for (key, value) in [
      "backend": place.backendPath, "backend-id": "0", "virtual-device": "51728", "state": "1",
      "device-type": "disk",
    ] { #expect(xen.text("\(place.frontendPath)/\(key)") == value, "\(key)") }
    #expect(try place.create(in: store, parameters: "other.img", readOnly: false) == .found)
    #expect(xen.text("\(place.backendPath)/params") == "disk.img")
    let other = DeviceDirectories(
      device: VirtualDevice(number: 51728), of: .dom0, servedBy: .dom0, kind: "other")
    #expect(throws: XenError.self) { _ = try other.create(in: store, parameters: "", readOnly: false) }
    try other.remove(from: store)
    #expect(xen.text("\(place.frontendPath)/backend") == place.backendPath)
    try place.remove(from: store)
    #expect(xen.text("\(place.frontendPath)/backend") == nil && xen.text("\(place.backendPath)/state") == nil)
  }

  @Test func aDeviceOfTheKernelIsRefusedWithTheLineThatFreesIt() throws {
    let root = try makeTemporaryDirectory("back")
    let bus = "\(root)/bus/xen-backend"
    let directories = [
      root, "\(root)/bus", bus, "\(bus)/devices", "\(bus)/drivers", "\(bus)/drivers/vbd",
      "\(bus)/devices/vbd-1-51728",
    ]
    for directory in directories { mkdir(directory, 0o700) }
    defer {
      unlink("\(bus)/devices/vbd-1-51728/driver")
      for directory in directories.reversed() { rmdir(directory) }
    }
    func place(_ kind: String, _ number: UInt32) -> DeviceDirectories {
      DeviceDirectories(device: VirtualDevice(number: number), of: DomainID(1), servedBy: .dom0, kind: kind)
    }
    let kernel = KernelBackend(root: root)
    #expect(kernel.claim(on: place("vbd", 51728)) == nil)
    #expect(kernel.claim(on: place("xbd", 51744)) == nil)
    #expect(kernel.claim(on: place("vbd", 51744))?.contains("--kind") == true)
    symlink("../../drivers/vbd", "\(bus)/devices/vbd-1-51728/driver")
    #expect(
      kernel.claim(on: place("vbd", 51728))?.contains("echo vbd-1-51728 > \(bus)/drivers/vbd/unbind") == true)
  }
}
