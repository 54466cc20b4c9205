// SPDX-License-Identifier: Apache-2.0
//
// Where and how `serve` listens.

import ArgumentParser
import NBD
import Platform

/// Options of the NBD service.
struct ServiceArguments: ParsableArguments {
  @Option(
    help: ArgumentHelp(
      "Listen on this Unix socket, mode 0600; without it, on one that is printed.", valueName: "path"))
  var socket: String?

  @Option(
    help: ArgumentHelp(
      "Listen on TCP, on 127.0.0.1 unless a host is named; port 0 picks one.", valueName: "[host:]port"))
  var tcp: String?

  @Option(name: .customLong("export"), help: "The export's name; the empty name is always accepted too.")
  var exportName = ""

  @Option(help: ArgumentHelp("Clients at a time, at most.", valueName: "n"))
  var maxConnections = 64

  @Option(
    help: ArgumentHelp(
      "The longest busy wait for the next request, in microseconds; 0: none.", valueName: "µs"))
  var spin = 50

  mutating func validate() throws {
    guard (1...10000).contains(maxConnections) else {
      throw ValidationError("--max-connections takes 1 to 10000")
    }
    guard (0...10000).contains(spin) else { throw ValidationError("--spin takes 0 to 10000 microseconds") }
    if socket == "" { throw ValidationError("--socket takes the path of a file that does not exist yet") }
    if socket != nil, tcp != nil { throw ValidationError("give --socket or --tcp, not both") }
    guard exportName.utf8.count <= 4096 else { throw ValidationError("--export takes at most 4096 bytes") }
  }

  /// Opens the sockets: inherited ones when there are any, else what was asked for.
  ///
  /// - Parameters:
  ///   - inherited: descriptors from socket activation; owned from here on.
  ///   - fallback: the path to listen on when nothing was asked for.
  func listen(inherited: [Int32], fallback: String) throws -> [ListeningSocket] {
    guard inherited.isEmpty else {
      if let option = socket.map({ "--socket \($0)" }) ?? tcp.map({ "--tcp \($0)" }) {
        throw Failure(
          "\(option) would do nothing: the socket was handed over by whoever started this (LISTEN_FDS, socket activation)"
        )
      }
      var sockets: [ListeningSocket] = []
      for descriptor in inherited { sockets.append(try .inherited(OwnedDescriptor(descriptor))) }
      return sockets
    }
    if let tcp {
      let (host, port) = try Self.address(tcp)
      return [try .tcp(host: host, port: port)]
    }
    return [try .unix(path: socket ?? fallback)]
  }

  /// Reads `port`, `host:port` or `[v6]:port`.
  private static func address(_ text: String) throws -> (String, UInt16) {
    let parts = text.split(separator: ":", omittingEmptySubsequences: false)
    guard let last = parts.last, let port = UInt16(last) else {
      throw Failure("--tcp \(text) is no address; write PORT or HOST:PORT")
    }
    var host = parts.dropLast().joined(separator: ":")
    if host.hasPrefix("["), host.hasSuffix("]") { host = String(host.dropFirst().dropLast()) }
    return (host.isEmpty ? "127.0.0.1" : host, port)
  }

  var configuration: WorkerConfiguration {
    var configuration = WorkerConfiguration()
    configuration.maximumSpinMicroseconds = spin
    return configuration
  }
}
