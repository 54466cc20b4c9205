// SPDX-License-Identifier: Apache-2.0
//
// The loopback host's control socket: processes that ask for anything, know numbers that are not theirs, and write
// anything into the tables that they share.

import CXen
import Glibc
import Platform
import Synchronization
import SystemPackage

@testable import XenLoopback

func control(_ input: inout FuzzInput) {
  guard let fuzzer = try? ControlFuzzer() else { violated("there is room for a host") }
  var steps = 0
  while !input.isAtEnd, steps < 100 {
    steps += 1
    fuzzer.step(&input)
  }
  fuzzer.end()
}

private final class Process {
  let descriptor: Int32
  let connection: ControlConnection

  init(_ server: ControlServer, _ loop: HostLoop) throws(Errno) {
    var pair: [Int32] = [-1, -1]
    guard socketpair(AF_UNIX, streamSocket, 0, &pair) == 0 else {
      throw .noMemory
    }
    descriptor = pair[0]
    connection = try ControlConnection(OwnedDescriptor(pair[1]), server: server, loop: loop)
  }

  deinit { _ = Glibc.close(descriptor) }
}

private let rare: [ControlOperation] = [.introduceDomain, .invalidateDomain, .nextDomain, .storeStatus]

private final class ControlFuzzer {
  private let loop: HostLoop
  private let machine = HostMachine()
  private let server: ControlServer
  private var processes: [Process?]

  init() throws(Errno) {
    let machine = machine
    loop = try HostLoop()
    server = try ControlServer(
      OwnedDescriptor(eventfd(0, Int32(EFD_NONBLOCK))), machine: machine, loop: loop,
      createDomain: { number, limit, frames throws(Errno) in
        guard machine.domains.count < 4 else { throw .noMemory }
        try machine.createDomain(number, pageLimit: limit, frameLimit: frames)
      }, destroyDomain: { number throws(Errno) in try machine.destroyDomain(number) },
      introduceDomain: { _ in }, storeCounts: { _ in XenStoreCounts() })
    try machine.createDomain(0, pageLimit: 64, frameLimit: 4)
    try machine.createDomain(1, pageLimit: 64, frameLimit: 4)
    processes = [try Process(server, loop), try Process(server, loop), try Process(server, loop)]
  }

  func step(_ input: inout FuzzInput) {
    let what = input.byte()
    let place = Int(what & 3) % processes.count
    switch what >> 2 & 15 {
    case 15:
      // The process dies, and another takes its place.
      processes[place]?.connection.close()
      processes[place] = try? Process(server, loop)
    case 0: scribble(&input)
    default:
      guard let process = processes[place] else { return }
      var message = ControlMessage(UInt32(what >> 2 & 15))
      // Four bits are too few for what can be asked.
      if message.code == ControlOperation.introduceDomain.rawValue {
        message.code = rare[Int(input.byte()) % rare.count].rawValue
      }
      message.a = number(&input)
      message.b = number(&input)
      message.c = number(&input)
      let counter =
        what & 0x40 != 0 || message.code == ControlOperation.openHandle.rawValue ? eventfd(0, 0) : -1
      let bytes = message.bytes.prefix(what & 0x80 == 0 ? ControlMessage.byteCount : Int(what & 31) + 1)
      let sent = sendMessage(Array(bytes), counter >= 0 ? [counter] : [], on: process.descriptor)
      if counter >= 0 { _ = Glibc.close(counter) }
      guard sent > 0 else { return }
      process.connection.ready(.readable)
      receive(process)
    }
  }

  func end() {
    for process in processes { process?.connection.close() }
    for domain in machine.domains.values {
      guard domain.joins.isEmpty else { violated("a process's end ends its joins") }
      guard domain.portCount == 0 else { violated("a process's end closes its ports: \(domain.portCount)") }
    }
    guard machine.handles.isEmpty else { violated("a process's end closes its handles") }
    server.stop()
  }

  /// Small numbers, which mean something, and large ones.
  private func number(_ input: inout FuzzInput) -> UInt32 {
    let byte = input.byte()
    return byte & 0x80 == 0 ? UInt32(byte & 7) : input.word()
  }

  private func receive(_ process: Process) {
    withUnsafeTemporaryAllocation(byteCount: ControlMessage.byteCount, alignment: 16) { buffer in
      withUnsafeTemporaryAllocation(of: Int32.self, capacity: 4) { descriptors in
        descriptors.initialize(repeating: -1)
        var count = 4
        let got = cxen_receive_with_fds(
          process.descriptor, buffer.baseAddress, buffer.count, descriptors.baseAddress, &count)
        guard got > 0 else { return }
        for index in 0..<min(count, 4) where descriptors[index] >= 0 { _ = Glibc.close(descriptors[index]) }
        if got != ControlMessage.byteCount { violated("a reply is whole: \(got) bytes") }
      }
    }
  }

  /// Anything into a domain's tables, mostly where something is.
  private func scribble(_ input: inout FuzzInput) {
    guard let memory = machine.domains[UInt16(input.below(2))]?.memory else { return }
    let index = UInt32(input.below(24))
    let field = input.below(8) * 4
    let word: SharedUInt32 =
      switch input.below(5) {
      case 0: memory.port(index).record.word32(field)
      case 1: memory.grant(index).record.word32(field)
      case 2: memory.maptrack(index).record.word32(field)
      case 3: memory.handle(Int(index)).record.word32(field % 16)
      default: memory.header.record.word32(field)
      }
    word.storeRelaxed(input.word())
  }
}
