// SPDX-License-Identifier: Apache-2.0
//
// Virtual device numbers and names, from the table of xen-vbd-interface(7).

import TestSupport
import Blkif
import Testing

@Suite struct VirtualDeviceTests {
  static let names: [(String, UInt32)] = [
    ("xvda", 51712), ("xvda1", 51713), ("xvda15", 51727), ("xvdb", 51728), ("xvdp", 51952), ("xvdp15", 51967),
    ("xvdq", 1 << 28 | 16 << 8), ("xvdq1", 1 << 28 | 16 << 8 | 1), ("xvdz", 1 << 28 | 25 << 8),
    ("xvdaa", 1 << 28 | 26 << 8), ("xvdaz255", 1 << 28 | 51 << 8 | 255), ("xvda16", 1 << 28 | 16),
    ("xvdzz", 1 << 28 | 701 << 8), ("xvdaaa", 1 << 28 | 702 << 8), ("xvdbgqcv", 1 << 28 | 0xF_FFFF << 8),
    ("sda", 2048), ("sda1", 2049), ("sdb", 2064), ("sdp15", 2303),
    ("hda", 768), ("hda63", 831), ("hdb", 832), ("hdc", 5632), ("hdc2", 5634), ("hdd", 5696), ("hdd63", 5759),
  ]

  @Test(arguments: names)
  func aNameHasItsNumberAndANumberItsName(name: String, number: UInt32) throws {
    let device = try #require(VirtualDevice(name))
    #expect(device.number == number)
    #expect(device.name == name)
    #expect(VirtualDevice(number: number).description == "\(name) (\(number))")
    #expect(VirtualDevice(String(number)) == device)
    #expect(device.handle == UInt16(truncatingIfNeeded: number))
  }

  @Test(arguments: [
    "", "xvd", "xvdA", "xvda0", "xvda01", "xvda256", "xvda-1", "xvda 1", " xvda", "xvda ", "xvd1", "sdq",
    "sda16",
    "hde", "hda64", "vda", "nvme0n1", "-1", "4294967296", "xvdaaaaaaaa", "xvdbgqcw", "0x10", "xvdé", "xvda1b",
  ])
  func whatIsNeitherANameNorANumberIsRefused(text: String) {
    #expect(VirtualDevice(text) == nil)
  }

  @Test func everyExtendedDiskIsFoundAgainByItsName() throws {
    var random = SeededGenerator(seed: runSeed)
    for _ in 0..<20_000 {
      let disk = UInt32.random(in: 16..<1 << 20, using: &random)
      let partition = UInt32.random(in: 0...255, using: &random)
      let device = VirtualDevice(number: 1 << 28 | disk << 8 | partition)
      let name = try #require(device.name)
      try #require(VirtualDevice(name) == device, "\(name)")
    }
  }

  @Test func everyNumberBelow65536ThatHasANameIsFoundAgainByIt() {
    for number in 0..<UInt32(1 << 16) {
      let device = VirtualDevice(number: number)
      guard let name = device.name else { continue }
      #expect(VirtualDevice(name) == device, "\(name)")
    }
  }

  @Test func aNumberWithoutANameIsShownAsANumber() {
    #expect(VirtualDevice(number: 1).name == nil)
    #expect(VirtualDevice(number: 1).description == "1")
    #expect(VirtualDevice(number: 2 << 28).name == nil)
    #expect(VirtualDevice(number: UInt32.max).name == nil)
  }
}
