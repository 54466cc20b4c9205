// SPDX-License-Identifier: Apache-2.0

import Glibc
import NBDTestSupport
import Testing

@testable import NBD

/// Clients that send rubbish, at every byte where they could.
@Suite struct HostileClientTests {
  /// Sends bytes, hangs up, and lets the worker make of it what it will.
  private func attack(_ service: Service, _ bytes: [UInt8]) throws {
    let client = try TestClient(service.worker)
    // The server may have closed before all was sent.
    do { try client.send(bytes) } catch ClientError.closed {}
  }

  @Test func rubbishAtEveryByteOfTheHandshakeHarmsNobody() throws {
    let service = try Service()
    let witness = try TestClient(service.worker, .structured)
    let sane = HandshakeTests.talk([
      (NBDOption.structuredReply, []), (NBDOption.info, TestClient.go("disk", [1, 3])),
      (NBDOption.setMetaContext, TestClient.context("disk", ["base:allocation"])),
      (NBDOption.go, TestClient.go("")),
    ])
    for position in sane.indices {
      for rubbish: UInt8 in [0x00, 0x7f, 0xff] where sane[position] != rubbish {
        var bytes = sane
        bytes[position] = rubbish
        try attack(service, bytes)
        try attack(service, Array(bytes.prefix(position)))
      }
      #expect(try witness.read(0, 512).error == 0)
    }
    #expect(eventually { service.worker.statistics().connectionsOpen == 1 })
  }

  @Test(arguments: allStyles) func rubbishAtEveryByteOfARequestHarmsNobody(style: ReplyStyle) throws {
    let service = try Service()
    let witness = try TestClient(service.worker, style)
    let size = style == .extended ? 32 : 28
    let commands = (0..<9).map { UInt16($0) }
    for command in commands {
      for position in 0..<size {
        let client = try TestClient(service.worker, style)
        let payload = command == NBDCommand.write ? pattern(600) : []
        var bytes = client.encode(command, offset: 512, length: 600, payload: payload)
        bytes[position] = 0xff
        do {
          try client.send(bytes)
          try client.send(client.encode(NBDCommand.read, offset: 0, length: 16))
        } catch ClientError.closed {}
        if position % 7 == 0 { #expect(try witness.read(0, 512).error == 0) }
      }
    }
    #expect(eventually { service.worker.statistics().connectionsOpen == 1 })
    #expect(eventually { service.disk.outstandingCount == 0 })
  }

  @Test(arguments: 0..<8) func noiseAfterTheHandshakeHarmsNobody(seed: Int) throws {
    let service = try Service()
    let witness = try TestClient(service.worker, .simple)
    var random = SeededGenerator(seed: UInt64(seed + 1))
    for _ in 0..<50 {
      let client = try TestClient(service.worker, allStyles.randomElement(using: &random) ?? .simple)
      var bytes: [UInt8] = []
      for _ in 0..<Int.random(in: 1...20, using: &random) {
        // Headers with the right magic and random everything else: deeper than plain noise gets.
        let noise = (0..<client.encode(0).count).map { _ in UInt8.random(in: 0...255, using: &random) }
        var header = client.encode(UInt16.random(in: 0...8, using: &random)).prefix(8) + noise.dropFirst(8)
        if Bool.random(using: &random) { header.replaceSubrange(16..<22, with: repeatElement(0, count: 6)) }
        if Bool.random(using: &random) { header.replaceSubrange(24..<26, with: repeatElement(0, count: 2)) }
        bytes += header
      }
      bytes += (0..<3000).map { _ in UInt8.random(in: 0...255, using: &random) }
      do { try client.send(bytes) } catch ClientError.closed {}
      #expect(try witness.read(0, 512).error == 0)
    }
    #expect(eventually { service.worker.statistics().connectionsOpen == 1 })
    #expect(eventually { service.disk.outstandingCount == 0 })
  }
}
