// SPDX-License-Identifier: Apache-2.0
//
// The fuzzer: libFuzzer with one of our targets, chosen by `--target=NAME`. An option with two dashes is one that
// libFuzzer ignores and hands on to the processes it starts, as `-merge=1` does.

import Glibc

@_silgen_name("LLVMFuzzerRunDriver")
func runDriver(
  _ count: UnsafeMutablePointer<Int32>,
  _ arguments: UnsafeMutablePointer<UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>>,
  _ test: @convention(c) (UnsafePointer<UInt8>?, Int) -> Int32
) -> Int32

/// Something to be fuzzed: called with one input after another, leaves nothing behind.
typealias FuzzTarget = @Sendable (inout FuzzInput) -> Void

let targets: [String: FuzzTarget] = [
  "front-ring": frontRing,
  "back-ring": backRing,
  "xenstore": xenStore,
  "negotiation": negotiation,
  "nbd": nbd,
  "control": control,
]

@main
enum Fuzz {
  nonisolated(unsafe) static var target: FuzzTarget = { _ in }

  static func main() {
    let name = CommandLine.arguments.first { $0.hasPrefix("--target=") }.map { String($0.dropFirst(9)) }
    guard let name, let chosen = targets[name] else {
      say("--target= must be one of \(targets.keys.sorted().joined(separator: ", "))")
      exit(2)
    }
    target = chosen
    // A server's closing of a connection is no reason to end.
    signal(SIGPIPE, SIG_IGN)
    var count = CommandLine.argc
    var arguments = CommandLine.unsafeArgv
    exit(
      runDriver(&count, &arguments) { bytes, count in
        var input = FuzzInput(UnsafeBufferPointer(start: bytes, count: count))
        let before = openDescriptors()
        Fuzz.target(&input)
        let after = openDescriptors()
        if after > before { violated("what was opened is closed: \(after - before) descriptors are left") }
        return 0
      })
  }
}

/// How many of the first 256 descriptors are open, found with one system call.
private func openDescriptors() -> Int {
  withUnsafeTemporaryAllocation(of: pollfd.self, capacity: 256) { entries in
    for number in entries.indices {
      entries.initializeElement(at: number, to: pollfd(fd: Int32(number), events: 0, revents: 0))
    }
    _ = poll(entries.baseAddress, nfds_t(entries.count), 0)
    return entries.count { Int32($0.revents) & Int32(POLLNVAL) == 0 }
  }
}

/// Ends the process with a sentence, which libFuzzer reports together with the input.
func violated(_ property: String) -> Never {
  fflush(nil)
  say("PROPERTY VIOLATED: \(property)")
  abort()
}

private func say(_ sentence: String) {
  let line = sentence + "\n"
  _ = write(2, line, line.utf8.count)
}
