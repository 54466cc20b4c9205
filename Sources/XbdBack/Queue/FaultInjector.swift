// SPDX-License-Identifier: Apache-2.0
//
// Decides for each request of a device whether a fault meets it. One for all queues and connections of a device;
// there is none without a plan, so that a request pays nothing.

internal import Blkif
internal import Synchronization

/// The requests that were counted, and what follows from the plan.
final class FaultInjector: Sendable {
  private struct State {
    var counts: [UInt64]
    /// SplitMix64.
    var random: UInt64
  }
  private let plan: FaultPlan
  private let state: Mutex<State>

  /// - Parameter plan: nil comes back when nothing is to go wrong.
  init?(_ plan: FaultPlan) {
    guard !plan.faults.isEmpty else { return nil }
    self.plan = plan
    state = Mutex(State(counts: Array(repeating: 0, count: plan.faults.count), random: plan.seed))
  }

  /// Counts a request.
  ///
  /// - Parameter operation: what it does, for an indirect one what is inside.
  /// - Returns: what goes wrong with it, if anything.
  func next(_ operation: BlockOperation?) -> FaultPlan.Kind? {
    state.withLock { state in
      var found: FaultPlan.Kind?
      for (index, fault) in plan.faults.enumerated() where fault.operation.covers(operation) {
        state.counts[index] &+= 1
        let count = state.counts[index]
        let isDue =
          switch fault.occasion {
          case .at(let number): count == number
          case .from(let number): count >= number
          case .every(let number): count % number == 0
          case .random(let oneIn): Self.draw(&state.random) % oneIn == 0
          }
        if isDue, found == nil { found = fault.kind }
      }
      return found
    }
  }

  private static func draw(_ state: inout UInt64) -> UInt64 {
    state &+= 0x9E37_79B9_7F4A_7C15
    var value = state
    value = (value ^ (value >> 30)) &* 0xBF58_476D_1CE4_E5B9
    value = (value ^ (value >> 27)) &* 0x94D0_49BB_1331_11EB
    return value ^ (value >> 31)
  }
}

extension FaultPlan.Operation {
  fileprivate func covers(_ operation: BlockOperation?) -> Bool {
    switch self {
    case .any: true
    case .read: operation == .read
    case .write: operation == .write
    case .flush: operation == .flush || operation == .writeBarrier
    case .discard: operation == .discard
    }
  }
}
