// SPDX-License-Identifier: Apache-2.0
//
// Things that a backend does wrong on purpose, so that whoever develops a frontend, or what runs on it, sees what
// becomes of them. All of them are faults that disks, networks and processes have; what only malice does is no
// business of a reference backend.

/// Which requests are treated wrongly, and how.
public struct FaultPlan: Equatable, Sendable {
  /// What goes wrong.
  public enum Kind: Equatable, Sendable {
    /// Not done, answered ERROR.
    case error
    /// Not done, answered EOPNOTSUPP.
    case notSupported
    /// Done by a worker that sleeps first, in milliseconds; later requests overtake it.
    case delay(milliseconds: UInt32)
    /// Done, and answered after everything else that is answered in the same turn, the last one first.
    case late
    /// Done, and never answered.
    case drop
    /// This request and all after it are neither done nor answered, until a frontend connects again.
    case stop
    /// The process is killed.
    case die
  }
  /// Which requests are counted.
  public enum Operation: String, CaseIterable, Sendable {
    /// All.
    case any
    /// Reads, indirect ones included.
    case read
    /// Writes, indirect ones included.
    case write
    /// Flushes and barriers.
    case flush
    /// Discards.
    case discard
  }
  /// When, counted in requests of the operation over all queues and connections of the device, from 1.
  public enum Occasion: Equatable, Sendable {
    /// Once.
    case at(UInt64)
    /// This one and all later ones.
    case from(UInt64)
    /// Each one that is a multiple.
    case every(UInt64)
    /// One in so many, at random.
    case random(oneIn: UInt64)
  }
  /// One thing that goes wrong.
  public struct Fault: Equatable, Sendable {
    /// What.
    public var kind: Kind
    /// With which requests.
    public var operation: Operation
    /// When.
    public var occasion: Occasion
    /// A fault.
    public init(_ kind: Kind, of operation: Operation = .any, _ occasion: Occasion) {
      self.kind = kind
      self.operation = operation
      self.occasion = occasion
    }
  }

  /// What goes wrong; of several that meet in one request, the first does.
  public var faults: [Fault]
  /// What the random ones follow from.
  public var seed: UInt64

  /// A plan; without a seed, one of its own.
  public init(_ faults: [Fault] = [], seed: UInt64? = nil) {
    self.faults = faults
    self.seed = seed ?? UInt64.random(in: 1...UInt64(UInt32.max))
  }

  /// Whether any of it follows from the seed.
  public var isRandom: Bool {
    faults.contains { if case .random = $0.occasion { true } else { false } }
  }

  /// Reads faults as a command line has them: `KIND[:OPERATION]@WHEN`.
  ///
  /// KIND is error, notsupported, delay=MILLISECONDS, late, drop, stop or die. OPERATION is any, read, write, flush or
  /// discard. WHEN is 10 for the tenth, 10+ for that and all later ones, *10 for every tenth, 1/10 for one in ten at
  /// random.
  public init(parsing texts: [String], seed: UInt64? = nil) throws(FaultPlanError) {
    var faults: [Fault] = []
    for text in texts {
      guard let fault = Fault(parsing: text) else { throw FaultPlanError(text: text) }
      faults.append(fault)
    }
    self.init(faults, seed: seed)
  }

  /// Whether the same goes wrong; a seed that nothing follows from makes no difference.
  public static func == (left: Self, right: Self) -> Bool {
    left.faults == right.faults && (!left.isRandom || left.seed == right.seed)
  }
}

/// A fault that cannot be understood.
public struct FaultPlanError: Error, Sendable, CustomStringConvertible {
  /// What was written.
  public let text: String
  /// One sentence for a person.
  public var description: String {
    "\"\(text)\" is no fault; write KIND[:OPERATION]@WHEN, such as error:write@10, delay=50@*100 or drop:read@1/1000"
  }
}

extension FaultPlan.Fault {
  fileprivate init?(parsing text: String) {
    let halves = text.split(separator: "@", omittingEmptySubsequences: false)
    guard halves.count == 2, let occasion = Self.occasion(halves[1]) else { return nil }
    let words = halves[0].split(separator: ":", omittingEmptySubsequences: false)
    guard words.count <= 2, let first = words.first, let kind = Self.kind(first) else { return nil }
    var operation = FaultPlan.Operation.any
    if words.count == 2 {
      guard let named = FaultPlan.Operation(rawValue: String(words[1])) else { return nil }
      operation = named
    }
    self.init(kind, of: operation, occasion)
  }

  private static func kind(_ text: Substring) -> FaultPlan.Kind? {
    switch text {
    case "error": return .error
    case "notsupported": return .notSupported
    case "late": return .late
    case "drop": return .drop
    case "stop": return .stop
    case "die": return .die
    default:
      guard text.hasPrefix("delay="), let time = UInt32(text.dropFirst(6)), time <= 600_000 else {
        return nil
      }
      return .delay(milliseconds: time)
    }
  }

  private static func occasion(_ text: Substring) -> FaultPlan.Occasion? {
    if text.hasPrefix("*") { return positive(text.dropFirst()).map { .every($0) } }
    if text.hasPrefix("1/") { return positive(text.dropFirst(2)).map { .random(oneIn: $0) } }
    if text.hasSuffix("+") { return positive(text.dropLast()).map { .from($0) } }
    return positive(text).map { .at($0) }
  }

  private static func positive(_ text: Substring) -> UInt64? { UInt64(text).flatMap { $0 > 0 ? $0 : nil } }
}
