// SPDX-License-Identifier: Apache-2.0
//
// A host's directory and control socket, and the toolstack.

import TestSupport
import CXen
import Glibc
import Platform
import Testing
import Xen

@testable import XenLoopback

@Suite struct HostTests {
  @Test func aDirectoryHasOneHost() throws {
    let machine = try Machine()
    #expect { _ = try LoopbackHost(directory: machine.host.directory) } throws: { error in
      guard let error = error as? XenError else { return false }
      return error.code == .denied && error.message.contains("process \(getpid())")
    }
    #expect(try machine.toolstack.store.read("/local/domain/1/domid") == "1")
  }

  @Test func aHostLeavesNothingBehind() throws {
    let directory = try makeTemporaryPath("loopback")
    let host = try LoopbackHost(directory: directory)
    try LoopbackToolstack(directory: directory).createDomain(DomainID(3))
    #expect(access(directory + "/dom3/xenstored.sock", F_OK) == 0)
    host.stop()
    #expect(access(directory, F_OK) != 0)
  }

  @Test func aJoinKnowsWhetherItsHostIsThere() throws {
    let machine = try Machine()
    let (domain, other) = (try machine.join(1), try machine.join(2))
    #expect(domain.isConnected && other.isConnected)
    try machine.toolstack.destroyDomain(DomainID(1))
    #expect(!domain.isConnected && other.isConnected)
    machine.host.stop()
    #expect(!other.isConnected)
  }

  @Test func regression_aDestroyedDomainTakesTheBackendsOfItsDevicesAlong() throws {
    let machine = try Machine()
    let toolstack = machine.toolstack
    let disks = [
      LoopbackBlockDevice(virtualDevice: 51712, name: "xvda", frontend: DomainID(1)),
      LoopbackBlockDevice(virtualDevice: 51728, name: "xvdb", frontend: DomainID(1), kind: "qdisk"),
      LoopbackBlockDevice(virtualDevice: 51712, name: "xvda", frontend: DomainID(1), backend: DomainID(2)),
    ]
    let other = LoopbackBlockDevice(virtualDevice: 51712, name: "xvda", frontend: DomainID(2))
    for disk in [disks[0], disks[1], other] { try toolstack.attach(disk) }
    try toolstack.forget(disks[0])
    try toolstack.attach(disks[2])
    // A domain may say that its backend is somewhere else, or nowhere.
    try toolstack.store.write("\(disks[1].frontendPath)/backend", other.backendPath)
    try toolstack.destroyDomain(DomainID(1))
    for disk in disks {
      #expect(try toolstack.store.list(disk.backendPath) == nil)
      #expect(try toolstack.store.list(disk.frontendPath) == nil)
    }
    #expect(try toolstack.store.read("\(other.backendPath)/state") == "1")
    // The next domain of that number has no devices until it is given some.
    try toolstack.createDomain(DomainID(1))
    for disk in disks.dropFirst() { try toolstack.attach(disk) }
  }

  @Test func aToolstackThatDiedInTheMiddleOfDestroyingIsFollowedByAnother() throws {
    let machine = try Machine()
    let disk = LoopbackBlockDevice(virtualDevice: 51712, name: "xvda", frontend: DomainID(1))
    try machine.toolstack.attach(disk)
    _ = try ControlClient(machine.host.directory).call(ControlMessage(.destroyDomain, a: 1))
    #expect(try machine.toolstack.store.read("\(disk.backendPath)/state") == "1")
    try machine.toolstack.destroyDomain(DomainID(1))
    #expect(try machine.toolstack.store.list(disk.backendPath) == nil)
    #expect(try machine.toolstack.store.list("/local/domain/1") == nil)
    #expect(throws: XenError.self) { try machine.toolstack.destroyDomain(DomainID(1)) }
  }

  @Test func aDirectoryThatOthersMayEnterIsRefused() throws {
    let directory = try makeTemporaryPath("loopback")
    #expect(mkdir(directory, 0o755) == 0)
    chmod(directory, 0o755)
    defer { rmdir(directory) }
    #expect { _ = try LoopbackHost(directory: directory) } throws: { error in
      (error as? XenError)?.message.contains("chmod 700") == true
    }
  }

  @Test func impossibleDirectoriesAreNamed() throws {
    for path in ["/nonexistent/loopback", "/etc/passwd", "/tmp/" + String(repeating: "x", count: 100)] {
      #expect { _ = try LoopbackHost(directory: path) } throws: { error in
        (error as? XenError)?.message.contains(path) == true
      }
    }
  }

  @Test func domainsThatCannotBeAreRefused() throws {
    let machine = try Machine()
    for number in [0, 1, 0x7FF0, 0xFFFF] as [UInt16] {
      #expect(throws: XenError.self) { try machine.toolstack.createDomain(DomainID(number)) }
    }
    #expect(throws: XenError.self) { try machine.toolstack.destroyDomain(.dom0) }
    #expect(throws: XenError.self) { try machine.toolstack.destroyDomain(DomainID(9)) }
    #expect { _ = try machine.join(9) } throws: { ($0 as? XenError)?.code == .notFound }
  }

  @Test func rubbishOnTheControlSocketHarmsNobodyElse() throws {
    let machine = try Machine()
    var generator = SeededGenerator(seed: 5)
    for round in 0..<200 {
      let socket = try UnixSocket.connect(path: LoopbackPaths.control(machine.host.directory))
      var bytes = (0..<Int.random(in: 1...200, using: &generator)).map { _ in
        UInt8.random(in: 0...255, using: &generator)
      }
      // A real operation with rubbish for arguments reaches further than rubbish alone. Not the destruction of
      // domains, which anybody who may enter the directory is entitled to.
      if round % 2 == 0, bytes.count >= 4 { bytes.replaceSubrange(0..<4, with: [UInt8(round % 9), 0, 0, 0]) }
      if bytes.count >= 4, bytes[1...3] == [0, 0, 0], (10...12).contains(bytes[0]) { continue }
      var passed = [socket.raw, socket.raw, socket.raw]
      _ = cxen_send_with_fds(socket.raw, bytes, bytes.count, &passed, round % 3)
    }
    #expect(try machine.toolstack.status(of: DomainID(1)).pagesShared == 0)
    #expect(try machine.join(1).openXenStore().read("domid") == "1")
  }

  @Test func anAttachedDeviceHasLibxlsNodesAndPermissions() throws {
    let machine = try Machine()
    var device = LoopbackBlockDevice(
      virtualDevice: 51728, name: "xvdb", frontend: DomainID(1), kind: "qdisk", parameters: "raw:/disk",
      type: "qdisk")
    device.backendNodes = ["direct-io-safe": "1"]
    try machine.toolstack.attach(device)
    let (front, stranger) = (try machine.join(1).openXenStore(), try machine.join(2).openXenStore())
    #expect(try front.read("device/vbd/51728/backend") == "/local/domain/0/backend/qdisk/1/51728")
    for (node, value) in [
      ("backend-id", "0"), ("state", "1"), ("virtual-device", "51728"), ("device-type", "disk"),
      ("trusted", "1"),
    ] {
      #expect(try front.read("device/vbd/51728/\(node)") == value)
    }
    for (node, value) in [
      ("frontend", "/local/domain/1/device/vbd/51728"), ("frontend-id", "1"), ("online", "1"), ("state", "1"),
      ("removable", "0"), ("bootable", "1"), ("dev", "xvdb"), ("type", "qdisk"), ("mode", "w"),
      ("device-type", "disk"), ("discard-enable", "1"), ("params", "raw:/disk"), ("direct-io-safe", "1"),
      ("specification", "xen"),
    ] {
      #expect(try front.read("/local/domain/0/backend/qdisk/1/51728/\(node)") == value)
    }
    try front.write("device/vbd/51728/ring-ref", "8")
    #expect(throws: XenError.self) { try front.write("/local/domain/0/backend/qdisk/1/51728/state", "4") }
    #expect(throws: XenError.self) { _ = try stranger.read("/local/domain/1/device/vbd/51728/state") }
    #expect(throws: XenError.self) { try machine.toolstack.attach(device) }
    try machine.toolstack.detach(device)
    #expect(try front.read("/local/domain/0/backend/qdisk/1/51728/online") == "0")
    #expect(try front.read("/local/domain/0/backend/qdisk/1/51728/state") == "5")
    try machine.toolstack.forget(device)
    #expect(try front.read("device/vbd/51728/state") == nil)
    #expect(throws: XenError.self) { try machine.toolstack.detach(device) }
    try machine.toolstack.attach(device)
  }

  @Test func aBackendMayBeAnotherDomainThanTheControlDomain() throws {
    let machine = try Machine()
    let device = LoopbackBlockDevice(
      virtualDevice: 51712, name: "xvda", frontend: DomainID(1), backend: DomainID(2))
    try machine.toolstack.attach(device)
    let back = try machine.join(2).openXenStore()
    #expect(try back.list("backend/vbd/1") == ["51712"])
    try back.write("backend/vbd/1/51712/state", "2")
    #expect(try machine.join(1).openXenStore().read(device.backendPath + "/state") == "2")
    #expect(try back.read(device.frontendPath + "/state") == "1")
  }
}
