// SPDX-License-Identifier: Apache-2.0
//
// A party in another process: orders go to a child's standard input, a line each, answers come back on its standard
// output. The child may be killed, to see what its peers notice.

internal import CXen
internal import Glibc
internal import Platform
internal import SystemPackage
public import Xen

/// A child process that carries orders out.
public final class RemoteParty: ConformanceParty {
  /// The domain it acts for.
  public let domain: DomainID
  /// The child.
  public let process: Int32
  private let input: OwnedDescriptor
  private let output: OwnedDescriptor
  private var received: [UInt8] = []
  private var isReaped = false

  /// Starts the helper program.
  ///
  /// - Parameters:
  ///   - arguments: what it is called with, the program's path first.
  ///   - domain: the domain it will act for.
  ///   - environment: variables for it ("NAME=value"), beside a plain PATH.
  public init(
    _ arguments: [String], domain: DomainID, environment: [String] = []
  ) throws(XenError) {
    self.domain = domain
    var down: (Int32, Int32) = (-1, -1)
    var up: (Int32, Int32) = (-1, -1)
    let flags = cxen_O_CLOEXEC
    let made =
      withUnsafeMutablePointer(to: &down) { pair in
        pair.withMemoryRebound(to: Int32.self, capacity: 2) { cxen_pipe2($0, flags) }
      } == 0
      && withUnsafeMutablePointer(to: &up) { pair in
        pair.withMemoryRebound(to: Int32.self, capacity: 2) { cxen_pipe2($0, flags) }
      } == 0
    input = OwnedDescriptor(down.1)
    output = OwnedDescriptor(up.0)
    defer {
      _ = Glibc.close(down.0)
      _ = Glibc.close(up.1)
    }
    var actions = posix_spawn_file_actions_t()
    posix_spawn_file_actions_init(&actions)
    defer { posix_spawn_file_actions_destroy(&actions) }
    posix_spawn_file_actions_adddup2(&actions, down.0, 0)
    posix_spawn_file_actions_adddup2(&actions, up.1, 1)
    var child: pid_t = 0
    var strings: [UnsafeMutablePointer<CChar>?] = arguments.map { strdup($0) } + [nil]
    // Not our own environment: other tests change it at this moment, when they connect to xenstore.
    let variables = ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"] + environment
    var environment: [UnsafeMutablePointer<CChar>?] = variables.map { strdup($0) } + [nil]
    defer { for string in strings + environment { free(string) } }
    let code = made ? posix_spawn(&child, arguments[0], &actions, nil, &strings, &environment) : EMFILE
    process = child
    guard code == 0 else { throw XenError(errno: Errno(rawValue: code), "cannot start \(arguments[0])") }
  }

  deinit {
    kill()
  }

  /// Ends the child at once, and waits until it is gone.
  public func kill() {
    if isReaped || process <= 0 { return }
    isReaped = true
    _ = Glibc.kill(process, SIGKILL)
    var status: Int32 = 0
    while waitpid(process, &status, 0) == -1 && Errno.current == .interrupted {}
  }

  /// Carries an order out in the child.
  public func perform(_ words: [String]) throws(XenError) -> [String] {
    let line = Array((words.joined(separator: " ") + "\n").utf8)
    guard Glibc.write(input.raw, line, line.count) == line.count else {
      throw XenError(.disconnected, "the helper process is gone")
    }
    return try Self.decode(try readLine())
  }

  private func readLine() throws(XenError) -> String {
    while true {
      if let end = received.firstIndex(of: 10) {
        let line = String(decoding: received[..<end], as: UTF8.self)
        received.removeSubrange(...end)
        return line
      }
      var chunk = [UInt8](repeating: 0, count: 4096)
      let got = Glibc.read(output.raw, &chunk, chunk.count)
      guard got > 0 else { throw XenError(.disconnected, "the helper process is gone") }
      received.append(contentsOf: chunk[..<got])
    }
  }

  private static func decode(_ line: String) throws(XenError) -> [String] {
    let words = line.split(separator: " ", maxSplits: 2).map(String.init)
    guard words.first == "ok" else {
      throw XenError(
        .init(rawValue: words.count > 1 ? words[1] : "system"), words.count > 2 ? words[2] : line)
    }
    return line.split(separator: " ").dropFirst().map(String.init)
  }
}

/// Carries out the orders on standard input until it ends; what the helper program does.
///
/// - Parameter party: who does it.
public func serveParty(_ party: any ConformanceParty) {
  while let line = Swift.readLine() {
    let answer: String
    do throws(XenError) {
      let words = try party.perform(line.split(separator: " ").map(String.init))
      answer = (["ok"] + words).joined(separator: " ")
    } catch {
      answer = "error \(error.code.rawValue) \(error.message)"
    }
    let bytes = Array((answer + "\n").utf8)
    if write(1, bytes, bytes.count) != bytes.count { return }
  }
}
