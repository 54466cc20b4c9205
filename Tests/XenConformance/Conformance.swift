// SPDX-License-Identifier: Apache-2.0
//
// The seam's guarantees, one check for each sentence of its doc comments (Sources/Xen). A check is given two parties
// of two domains and does not know which Xen it is on or how many processes take part.

internal import Xen

/// The parties of a check.
public struct ConformanceCast {
  /// Shares pages, creates ports.
  public let frontend: any ConformanceParty
  /// Maps and binds.
  public let backend: any ConformanceParty
  /// A third domain that nothing is meant for; checks that need one are skipped without it.
  public let stranger: (any ConformanceParty)?
  /// A node under which both may write.
  public let scratchPath: String

  /// Names the parties.
  public init(
    frontend: any ConformanceParty, backend: any ConformanceParty, stranger: (any ConformanceParty)? = nil,
    scratchPath: String
  ) {
    self.frontend = frontend
    self.backend = backend
    self.stranger = stranger
    self.scratchPath = scratchPath
  }
}

/// One guarantee and how it is checked.
public struct ConformanceCheck: Sendable, CustomStringConvertible {
  /// The guarantee, as a sentence.
  public let name: String
  let run: @Sendable (ConformanceCast) throws -> Void

  init(_ name: String, _ run: @escaping @Sendable (ConformanceCast) throws -> Void) {
    self.name = name
    self.run = run
  }

  /// The guarantee.
  public var description: String { name }

  /// Checks the guarantee.
  ///
  /// - Throws: `ConformanceFailure`, or whatever the parties throw where they should not.
  public func callAsFunction(_ cast: ConformanceCast) throws { try run(cast) }

  /// Every check.
  public static let all = grants + events + store
}

/// A guarantee that does not hold.
public struct ConformanceFailure: Error, CustomStringConvertible {
  /// What was seen instead, and where.
  public let description: String
}

func expect(
  _ condition: Bool, _ what: @autoclosure () -> String, line: Int = #line
) throws(ConformanceFailure) {
  if !condition { throw ConformanceFailure(description: "\(what()) (line \(line))") }
}

/// Calls what must fail.
///
/// - Returns: the code it failed with.
@discardableResult
func refusal(_ what: String, line: Int = #line, _ body: () throws(XenError) -> Void) throws -> XenError.Code {
  do throws(XenError) {
    try body()
  } catch {
    return error.code
  }
  throw ConformanceFailure(description: "\(what) was not refused (line \(line))")
}
