// SPDX-License-Identifier: Apache-2.0

import Testing
import Xen

/// What the adapters say on a machine that is no Xen guest.
///
/// Where there is one, XenConformance runs instead.
@Suite struct LibXenTests {
  private static let isGuest: Bool = {
    guard let channels = try? LibXenSystem().openEventChannels() else { return false }
    return channels.fileDescriptor >= 0
  }()

  @Test(.disabled(if: isGuest)) func withoutXenEveryServiceSaysSoInOneSentence() {
    let system = LibXenSystem()
    for open in [
      { _ = try system.openGrantSharing() }, { _ = try system.openGrantMapping() },
      { _ = try system.openEventChannels() },
    ] as [() throws -> Void] {
      #expect { try open() } throws: { error in
        guard let error = error as? XenError else { return false }
        return error.code == .unavailable && error.message.contains("/dev/xen/")
          && !error.message.contains("\n")
      }
    }
  }

  @Test func aSocketThatNobodyServesIsNamed() {
    #expect { _ = try LibXenStore(socket: "/nonexistent/xenstored.sock") } throws: { error in
      guard let error = error as? XenError else { return false }
      return error.code == .unavailable && error.message.contains("/nonexistent/xenstored.sock")
    }
  }

  @Test func aSocketPathThatIsTooLongIsRefused() {
    let path = "/" + String(repeating: "x", count: 120)
    #expect { _ = try LibXenStore(socket: path) } throws: { ($0 as? XenError)?.code == .invalid }
  }
}
