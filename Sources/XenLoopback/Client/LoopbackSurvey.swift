// SPDX-License-Identifier: Apache-2.0
//
// What everybody on a host holds, counted: for people who look for a leak, and for tests of the same. Grants and
// mappings are counted in the domains' tables, the rest by the host.

internal import Platform
internal import Synchronization
internal import SystemPackage
public import Xen

/// What a domain of a loopback host has and holds.
public struct LoopbackDomainSurvey: Sendable, Equatable {
  /// The domain.
  public let domain: DomainID
  /// Processes, or parts of one, that have joined it.
  public let joins: Int
  /// Pages that it shares now, and gntalloc's limit for them.
  public let pagesShared: Int
  /// gntalloc's limit.
  public let pageLimit: Int
  /// Grant entries in use: pages shared, and pages that are no longer shared but still mapped.
  public let grants: Int
  /// Those of them that somebody has mapped.
  public let grantsMapped: Int
  /// Pages of others that it has mapped.
  public let mappings: Int
  /// Event-channel ports in use.
  public let ports: Int
  /// Its connections to xenstore.
  public let storeConnections: Int
  /// Watches of those connections.
  public let watches: Int
  /// Transactions that are open.
  public let transactions: Int
  /// Nodes that it owns.
  public let nodes: Int

  /// Counts what every domain of a host has at the moment.
  ///
  /// - Parameter directory: the host's.
  /// - Returns: one for each domain, by number.
  /// - Throws: `.unavailable` when no host answers.
  public static func all(in directory: String) throws(XenError) -> [LoopbackDomainSurvey] {
    let control = try ControlClient(directory)
    var surveys: [LoopbackDomainSurvey] = []
    var next: UInt32 = 0
    do throws(Errno) {
      while let number = try domain(from: next, control) {
        if let survey = try survey(number, control) { surveys.append(survey) }
        next = number + 1
      }
    } catch {
      throw XenError(errno: error, "cannot look around in the loopback \(directory)")
    }
    return surveys
  }

  private static func domain(from number: UInt32, _ control: ControlClient) throws(Errno) -> UInt32? {
    do throws(Errno) {
      return try control.call(ControlMessage(.nextDomain, a: number)).message.a
    } catch {
      if error == .noSuchFileOrDirectory { return nil }
      throw error
    }
  }

  /// - Returns: nil for a domain that goes while we look.
  private static func survey(
    _ number: UInt32, _ control: ControlClient
  ) throws(Errno) -> LoopbackDomainSurvey? {
    do throws(Errno) {
      return try LoopbackDomainSurvey(number, control)
    } catch {
      if error == .noSuchFileOrDirectory { return nil }
      throw error
    }
  }

  private init(_ number: UInt32, _ control: ControlClient) throws(Errno) {
    domain = DomainID(UInt16(truncatingIfNeeded: number))
    let status = try control.call(ControlMessage(.status, a: number)).message
    pagesShared = Int(status.a)
    pageLimit = Int(status.b)
    ports = Int(status.c)
    joins = Int(status.d)
    let store = try control.call(ControlMessage(.storeStatus, a: number)).message
    storeConnections = Int(store.a)
    watches = Int(store.b)
    transactions = Int(store.c)
    nodes = Int(store.d)
    let memory = try control.call(ControlMessage(.lookUp, a: number)).memory()
    var grants = 0
    var mapped = 0
    let end = min(
      memory.header.grantHighWater.loadRelaxed(), UInt32(DomainLayout.grantCount))
    for reference in UInt32(DomainLayout.firstGrant)..<max(end, UInt32(DomainLayout.firstGrant)) {
      let word = memory.grant(reference).word.loadRelaxed()
      guard word & GrantEntry.allocated != 0 else { continue }
      grants += 1
      // While an entry is busy the upper half is no count.
      if word & GrantEntry.busy == 0, GrantEntry.readers(word) + GrantEntry.writers(word) > 0 { mapped += 1 }
    }
    self.grants = grants
    grantsMapped = mapped
    var mappings = 0
    // A frame that nobody has is not touched: looking would give it a page of memory.
    for frame in 0..<DomainLayout.frameCount
    where memory.frameOwner(frame).loadRelaxed() != 0 {
      for entry in 0..<DomainLayout.entriesPerFrame {
        let handle = UInt32(frame * DomainLayout.entriesPerFrame + entry)
        let state = memory.maptrack(handle).state.loadRelaxed()
        if state & MaptrackEntry.active != 0 { mappings += 1 }
      }
    }
    self.mappings = mappings
  }
}
