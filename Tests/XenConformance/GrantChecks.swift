// SPDX-License-Identifier: Apache-2.0
//
// GrantSharing's and GrantMapping's guarantees.

import Glibc
import Xen

extension ConformanceCheck {
  /// The checks of grants.
  public static let grants: [ConformanceCheck] = [
    ConformanceCheck("the pages of one share call are zero, also after others used them") { cast in
      for _ in 0..<3 {
        let shared = try cast.frontend.share(4, with: cast.backend.domain)
        try expect(shared.references.count == 4, "\(shared.references.count) references for 4 pages")
        for page in 0..<4 {
          let content = try cast.frontend.peek(shared.id, page * 4096, 4096)
          try expect(content.allSatisfy { $0 == 0 }, "page \(page) is not zero")
          try cast.frontend.poke(shared.id, page * 4096, [UInt8](repeating: 0xEE, count: 4096))
        }
        try cast.frontend.unshare(shared.id)
      }
    },
    ConformanceCheck("a mapping shows the granter's own page, in both directions") { cast in
      let shared = try cast.frontend.share(1, with: cast.backend.domain)
      let mapped = try cast.backend.map(shared.references, of: cast.frontend.domain)
      try cast.frontend.poke(shared.id, 17, [1, 2, 3])
      try expect(
        try cast.backend.peek(mapped, 17, 3) == [1, 2, 3], "the mapper does not see the granter's bytes")
      try cast.backend.poke(mapped, 4095, [9])
      try expect(
        try cast.frontend.peek(shared.id, 4095, 1) == [9], "the granter does not see the mapper's byte")
      try cast.backend.unmap(mapped)
      try cast.frontend.unshare(shared.id)
    },
    ConformanceCheck("the pages of one map call lie next to each other in the order of the references") {
      cast in
      let shared = try cast.frontend.share(5, with: cast.backend.domain)
      for page in 0..<5 { try cast.frontend.poke(shared.id, page * 4096, [UInt8(page + 1)]) }
      let order = [3, 4, 0, 2, 1]
      let mapped = try cast.backend.map(order.map { shared.references[$0] }, of: cast.frontend.domain)
      for (place, page) in order.enumerated() {
        try expect(
          try cast.backend.peek(mapped, place * 4096, 1) == [UInt8(page + 1)],
          "place \(place) is not page \(page)")
      }
      try cast.backend.unmap(mapped)
      try cast.frontend.unshare(shared.id)
    },
    ConformanceCheck("the same reference may be mapped more than once") { cast in
      let shared = try cast.frontend.share(1, with: cast.backend.domain)
      let reference = shared.references[0]
      let first = try cast.backend.map([reference, reference], of: cast.frontend.domain)
      let second = try cast.backend.map([reference], of: cast.frontend.domain, writable: false)
      try cast.backend.poke(first, 0, [5])
      try expect(try cast.backend.peek(first, 4096, 1) == [5], "the second page of the first mapping differs")
      try expect(try cast.backend.peek(second, 0, 1) == [5], "the second mapping differs")
      try cast.backend.unmap(first)
      try expect(try cast.backend.peek(second, 0, 1) == [5], "unmapping one took the other away")
      try cast.backend.unmap(second)
      try cast.frontend.unshare(shared.id)
    },
    ConformanceCheck("a read-only grant may be mapped read-only and not writable") { cast in
      let shared = try cast.frontend.share(1, with: cast.backend.domain, writable: false)
      try refusal("a writable mapping of a read-only grant") { () throws(XenError) in
        _ = try cast.backend.map(shared.references, of: cast.frontend.domain, writable: true)
      }
      try cast.frontend.poke(shared.id, 0, [42])
      let mapped = try cast.backend.map(shared.references, of: cast.frontend.domain, writable: false)
      try expect(try cast.backend.peek(mapped, 0, 1) == [42], "the read-only mapping shows something else")
      try cast.backend.unmap(mapped)
      try cast.frontend.unshare(shared.id)
    },
    ConformanceCheck("a reference that does not exist makes the whole call fail, and nothing stays mapped") {
      cast in
      let shared = try cast.frontend.share(2, with: cast.backend.domain)
      for absent in [GrantRef(0xFFFF_FFFF), GrantRef(0x7FFF_FFFF), GrantRef(1 << 20)] {
        try refusal("reference \(absent)") { () throws(XenError) in
          _ = try cast.backend.map(shared.references + [absent], of: cast.frontend.domain)
        }
      }
      try cast.frontend.unshare(shared.id)
      // Had something stayed mapped, its reference would still be granted or in use.
      try refusal("an unshared reference") { () throws(XenError) in
        _ = try cast.backend.map([shared.references[0]], of: cast.frontend.domain)
      }
    },
    ConformanceCheck("only the named domain may map, or copy") { cast in
      guard let stranger = cast.stranger else { return }
      let shared = try cast.frontend.share(1, with: cast.backend.domain)
      try refusal("a stranger's mapping") { () throws(XenError) in
        _ = try stranger.map(shared.references, of: cast.frontend.domain)
      }
      let copied = try stranger.copy(from: shared.references[0], of: cast.frontend.domain, 0, 16)
      try expect(copied.status != 0, "a stranger may copy")
      try cast.frontend.unshare(shared.id)
    },
    ConformanceCheck("a mapping goes on showing the page after it was unshared, and unmapping succeeds") {
      cast in
      let shared = try cast.frontend.share(2, with: cast.backend.domain)
      let mapped = try cast.backend.map(shared.references, of: cast.frontend.domain)
      try cast.frontend.poke(shared.id, 4096, [7, 7, 7])
      try cast.frontend.unshare(shared.id)
      // The pages must not be given to somebody else meanwhile.
      let others = try cast.frontend.share(8, with: cast.backend.domain)
      try cast.frontend.poke(others.id, 0, [UInt8](repeating: 0xAA, count: 4096))
      try expect(
        try cast.backend.peek(mapped, 4096, 3) == [7, 7, 7], "the page changed after it was unshared")
      try cast.backend.poke(mapped, 0, [8])
      try expect(try cast.backend.peek(mapped, 0, 1) == [8], "the mapping is not writable any more")
      try cast.backend.unmap(mapped)
      var isRefused = false
      for _ in 0..<200 where !isRefused {
        do throws(XenError) {
          try cast.backend.unmap(try cast.backend.map([shared.references[0]], of: cast.frontend.domain))
          usleep(100_000)
        } catch { isRefused = true }
      }
      try expect(isRefused, "what was unshared and unmapped can still be mapped after 20 s")
      try cast.frontend.unshare(others.id)
    },
    ConformanceCheck("copying works both ways without mapping, and each segment has its own outcome") {
      cast in
      let shared = try cast.frontend.share(2, with: cast.backend.domain)
      let readOnly = try cast.frontend.share(1, with: cast.backend.domain, writable: false)
      try cast.frontend.poke(shared.id, 100, [1, 2, 3, 4])
      let from = try cast.backend.copy(from: shared.references[0], of: cast.frontend.domain, 100, 4)
      try expect(from.status == 0 && from.bytes == [1, 2, 3, 4], "copied from: \(from)")
      let statuses = try cast.backend.copy(
        [5, 6], to: [shared.references[0], GrantRef(1 << 20), readOnly.references[0], shared.references[1]],
        of: cast.frontend.domain, 4094)
      try expect(statuses.count == 4 && statuses[0] == 0 && statuses[3] == 0, "good segments: \(statuses)")
      try expect(statuses[1] != 0 && statuses[2] != 0, "bad segments: \(statuses)")
      try expect(
        try cast.frontend.peek(shared.id, 4094, 2) == [5, 6], "the first good segment was not copied")
      try expect(
        try cast.frontend.peek(shared.id, 8190, 2) == [5, 6], "the segment after bad ones was not copied")
      try expect(try cast.frontend.peek(readOnly.id, 4094, 2) == [0, 0], "a read-only page was written")
      let crossing = try cast.backend.copy(
        [1, 2], to: [shared.references[0]], of: cast.frontend.domain, 4095)
      try expect(crossing == [-10], "a segment that leaves its page: \(crossing)")
      try cast.frontend.unshare(shared.id)
      try cast.frontend.unshare(readOnly.id)
    },
    ConformanceCheck("the end of a shared page clears its byte and notifies") { cast in
      let (front, back) = (try cast.frontend.openEvents(), try cast.backend.openEvents())
      let port = try cast.frontend.bindUnbound(front, cast.backend.domain)
      let theirs = try cast.backend.bind(back, cast.frontend.domain, port)
      _ = try cast.backend.pending(back)
      try cast.backend.unmask(back, theirs)
      let shared = try cast.frontend.share(1, with: cast.backend.domain, clear: 9, notify: port)
      try cast.frontend.poke(shared.id, 8, [1, 1, 1])
      let mapped = try cast.backend.map(shared.references, of: cast.frontend.domain)
      try cast.frontend.unshare(shared.id)
      try expect(try cast.backend.pending(back, milliseconds: 20_000) == theirs, "no event came")
      try expect(try cast.backend.peek(mapped, 8, 3) == [1, 0, 1], "the byte was not cleared, or more was")
      try cast.backend.unmap(mapped)
      try cast.frontend.close(front)
      try cast.backend.close(back)
    },
    ConformanceCheck("the end of a mapping clears its byte and notifies") { cast in
      let (front, back) = (try cast.frontend.openEvents(), try cast.backend.openEvents())
      let port = try cast.frontend.bindUnbound(front, cast.backend.domain)
      let theirs = try cast.backend.bind(back, cast.frontend.domain, port)
      let shared = try cast.frontend.share(1, with: cast.backend.domain)
      try cast.frontend.poke(shared.id, 0, [1, 1, 1])
      let mapped = try cast.backend.map(
        shared.references[0], of: cast.frontend.domain, clear: 1, notify: theirs)
      try cast.backend.unmap(mapped)
      try expect(try cast.frontend.pending(front, milliseconds: 20_000) == port, "no event came")
      try expect(
        try cast.frontend.peek(shared.id, 0, 3) == [1, 0, 1], "the byte was not cleared, or more was")
      try cast.frontend.unshare(shared.id)
      try cast.frontend.close(front)
      try cast.backend.close(back)
    },
  ]
}
