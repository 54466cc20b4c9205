// SPDX-License-Identifier: Apache-2.0
//
// Grants over ordinary memory: a registry from reference to page that a scripted backend looks pages up in.

import Glibc
import Platform
import Xen

@testable import XbdFront

/// Grant sharing with a limit, counts, and faults on request.
final class FakeGrants: GrantSharing {
  struct State {
    var limit: Int
    var nextReference: UInt32 = 8
    var pages: [GrantRef: Int] = [:]
    var shareCalls: [Int] = []
    var pagesShared = 0
    var pagesUnshared = 0
    var domains: Set<DomainID> = []
    var fault: XenError?
    /// The first byte of each page as it was when it was unshared.
    var bytesAtEnd: [GrantRef: UInt8] = [:]
  }
  private let guarded: Guarded<State>

  init(limit: Int = 100_000) { guarded = Guarded(State(limit: limit)) }

  func with<Value>(_ body: (inout State) -> Value) -> Value { guarded.with(body) }
  /// Pages shared at this moment.
  var liveCount: Int { with { $0.pages.count } }
  var shareCalls: [Int] { with { $0.shareCalls } }
  var made: Int { with { $0.pagesShared } }
  var ended: Int { with { $0.pagesUnshared } }

  /// The page behind a reference; nil when nothing is shared under it any more.
  func page(_ reference: GrantRef) -> UnsafeMutableRawPointer? {
    with { $0.pages[reference] }.flatMap { UnsafeMutableRawPointer(bitPattern: $0) }
  }

  /// Writes over every page that is shared.
  func overwrite(_ byte: UInt8) {
    for address in with({ Array($0.pages.values) }) {
      _ = UnsafeMutableRawPointer(bitPattern: address).map { memset($0, Int32(byte), Page.size) }
    }
  }

  func share(
    pages count: Int, with domain: DomainID, writable: Bool, notification: UnmapNotification?
  ) throws(XenError) -> SharedPages {
    precondition(count > 0)
    var raw: UnsafeMutableRawPointer?
    guard posix_memalign(&raw, Page.size, count * Page.size) == 0, let base = raw else {
      throw XenError(.system, "no memory")
    }
    memset(base, 0, count * Page.size)
    let address = Int(bitPattern: base)
    let result: Result<[GrantRef], XenError> = with { state in
      state.shareCalls.append(count)
      if let fault = state.fault { return .failure(fault) }
      guard state.pages.count + count <= state.limit else {
        return .failure(XenError(.limitReached, "the limit of \(state.limit) pages is reached"))
      }
      state.domains.insert(domain)
      state.pagesShared += count
      var references: [GrantRef] = []
      for index in 0..<count {
        let reference = GrantRef(state.nextReference)
        state.nextReference += 3
        state.pages[reference] = address + index * Page.size
        references.append(reference)
      }
      return .success(references)
    }
    switch result {
    case .failure(let error):
      free(base)
      throw error
    case .success(let references):
      return SharedPages(baseAddress: base, references: references) { [self] in
        with { state in
          for (index, reference) in references.enumerated() {
            state.pages[reference] = nil
            state.bytesAtEnd[reference] = UnsafeRawPointer(bitPattern: address + index * Page.size)?.load(
              as: UInt8.self)
          }
          state.pagesUnshared += count
        }
        free(UnsafeMutableRawPointer(bitPattern: address))
      }
    }
  }
}
