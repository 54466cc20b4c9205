// SPDX-License-Identifier: Apache-2.0
//
// Serves a memory disk, to measure the NBD module alone: nbd-bench-server SOCKET BYTES [WORKERS] [SPIN-µs]
// [DIRECT-THRESHOLD]. Ends on SIGINT or SIGTERM and prints what it counted.

internal import Glibc
internal import NBD
internal import NBDTestSupport

@main
enum BenchServer {
  static func main() throws {
    let arguments = CommandLine.arguments
    guard arguments.count >= 3, let byteCount = Int(arguments[2]) else {
      print("usage: nbd-bench-server SOCKET BYTES [WORKERS] [SPIN-MICROSECONDS] [DIRECT-THRESHOLD]")
      exit(2)
    }
    let number = { (index: Int) in index < arguments.count ? Int(arguments[index]) : nil }
    var signals = sigset_t()
    sigemptyset(&signals)
    sigaddset(&signals, SIGINT)
    sigaddset(&signals, SIGTERM)
    pthread_sigmask(SIG_BLOCK, &signals, nil)

    let disk = MemoryDisk(byteCount: byteCount)
    for index in stride(from: 0, to: byteCount, by: 4096) { disk.bytes[index] = 0x5a }
    var configuration = WorkerConfiguration()
    if let spin = number(4) { configuration.maximumSpinMicroseconds = spin }
    if let threshold = number(5) { configuration.directThreshold = threshold }
    let workers = number(3) ?? 1
    let server = try Server(
      sockets: [try ListeningSocket.unix(path: arguments[1])],
      targets: makeTargets(disk, workers), export: Export(), configuration: configuration)
    var signal: Int32 = 0
    sigwait(&signals, &signal)
    server.stop()
    let statistics = server.statistics()
    for counter in WorkerStatistics.Counter.allCases where statistics[counter] > 0 {
      print("\(counter): \(statistics[counter])")
    }
    print(
      "requests per receive: \(statistics.requestsPerReceive), replies per send: \(statistics.repliesPerSend)"
    )
  }

  static func makeTargets(_ disk: MemoryDisk, _ count: Int) throws -> sending [any BlockTarget] {
    try (0..<count).map { _ in try MemoryTarget(disk: disk) }
  }
}
