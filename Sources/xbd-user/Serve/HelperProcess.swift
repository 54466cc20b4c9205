// SPDX-License-Identifier: Apache-2.0
//
// A backend's process that `serve` starts: what it says on stderr is kept for the sentence that tells of its end, and
// goes on to our own stderr once it serves.

import CXen
import Glibc
import Platform
import Synchronization

/// A backend in a process of its own.
final class HelperProcess {
  private let name: String
  private let command: ChildCommand
  private let output: HelperOutput
  private let reader: DedicatedThread
  private var status: Int32?

  /// Starts it.
  ///
  /// - Parameters:
  ///   - name: for sentences: "QEMU's backend".
  ///   - program: its path and its arguments.
  init(_ name: String, _ program: [String]) throws {
    var ends: [Int32] = [-1, -1]
    guard cxen_pipe2(&ends, O_CLOEXEC) == 0 else {
      throw Failure("cannot make a pipe for \(name): \(String(cString: strerror(errno)))")
    }
    let source = OwnedDescriptor(ends[0])
    // Ours closes once the child has its own, so that the reader sees the child's end.
    let sink = OwnedDescriptor(ends[1])
    self.name = name
    command = try ChildCommand(
      program, environment: ChildCommand.environment(adding: []), helperOutput: sink.raw)
    let output = try HelperOutput()
    self.output = output
    reader = try DedicatedThread(name: "xbd-helper") { [source] in output.read(source.raw) }
  }

  /// Whether it said something that has this in it; the line.
  func said(_ words: String) -> String? { output.lines.first { $0.contains(words) } }

  /// What it says goes to our stderr from now on, and what it has said so far.
  func showOutput() { output.show() }

  /// Readable once nobody can say anything in its name any more: it has ended, or is about to.
  var endDescriptor: Int32 { output.end.fileDescriptor }

  /// Looks whether it has ended, by itself.
  ///
  /// - Parameter milliseconds: how long to wait for that.
  /// - Returns: how, in a sentence; nil while it runs.
  func ended(within milliseconds: Int = 0) -> String? {
    if status == nil { status = command.exitStatus(milliseconds: milliseconds) }
    guard let status else { return nil }
    // The last words may still be on their way.
    reader.join()
    let how =
      status > 128
      ? "was killed by signal \(status - 128) (\(String(cString: strsignal(status - 128))))"
      : "ended with status \(status)"
    let words = output.lines.suffix(3).joined(separator: "; ")
    return "\(name) \(how)" + (words.isEmpty ? "" : ": \(words)")
  }

  /// What it has said, for a sentence about why it does not serve.
  var lastWords: String { output.lines.suffix(3).joined(separator: "; ") }

  /// Ends it.
  func end(milliseconds: Int) {
    output.expectEnd()
    if status == nil { command.end(milliseconds: milliseconds) }
    status = status ?? 0
    reader.join()
  }
}

/// The lines of a helper, read on a thread of their own.
private final class HelperOutput: Sendable {
  private struct State {
    var kept: [String] = []
    var isShown = false
    var isEnding = false
  }

  private let state = Mutex(State())
  private static let bound = 16
  /// Signalled when nobody can write any more.
  let end: EventCounter

  init() throws { end = try EventCounter() }

  var lines: [String] { state.withLock { $0.kept } }

  func show() {
    state.withLock { state in
      state.isShown = true
      for line in state.kept { Console.note(line) }
    }
  }

  func expectEnd() { state.withLock { $0.isEnding = true } }

  /// Reads until nobody can write any more.
  func read(_ descriptor: Int32) {
    var pending: [UInt8] = []
    var chunk = [UInt8](repeating: 0, count: 4096)
    while true {
      let got = Glibc.read(descriptor, &chunk, chunk.count)
      if got < 0, errno == EINTR { continue }
      guard got > 0 else { break }
      pending.append(contentsOf: chunk[..<got])
      while let end = pending.firstIndex(of: UInt8(ascii: "\n")) {
        take(pending[..<end])
        pending.removeSubrange(...end)
      }
      // No line is that long; a flood without an end is not kept.
      if pending.count > 1 << 16 { pending.removeAll() }
    }
    if !pending.isEmpty { take(pending[...]) }
    end.signal()
  }

  private func take(_ bytes: ArraySlice<UInt8>) {
    let line = String(decoding: bytes, as: UTF8.self)
    state.withLock { state in
      // QEMU tells of the SIGTERM that we send it.
      if state.isEnding && line.contains("terminating on signal") { return }
      state.kept.append(line)
      if state.kept.count > Self.bound { state.kept.removeFirst() }
      if state.isShown { Console.note(line) }
    }
  }
}
