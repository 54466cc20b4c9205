// SPDX-License-Identifier: Apache-2.0
//
// EventChannels' guarantees.

import Xen

/// Two handles with one channel between them, both ends looked at and unmasked.
private struct Channel {
  let front: Int
  let back: Int
  let port: Int
  let theirs: Int

  init(_ cast: ConformanceCast) throws {
    front = try cast.frontend.openEvents()
    back = try cast.backend.openEvents()
    port = try cast.frontend.bindUnbound(front, cast.backend.domain)
    theirs = try cast.backend.bind(back, cast.frontend.domain, port)
    _ = try cast.backend.pending(back, milliseconds: 20_000)
    try cast.backend.unmask(back, theirs)
  }

  func close(_ cast: ConformanceCast) throws {
    try cast.frontend.close(front)
    try cast.backend.close(back)
  }
}

extension ConformanceCheck {
  /// The checks of event channels.
  public static let events: [ConformanceCheck] = [
    ConformanceCheck("binding sets the binder's port pending, and only the binder's") { cast in
      let (front, back) = (try cast.frontend.openEvents(), try cast.backend.openEvents())
      let port = try cast.frontend.bindUnbound(front, cast.backend.domain)
      let theirs = try cast.backend.bind(back, cast.frontend.domain, port)
      try expect(
        try cast.backend.pending(back, milliseconds: 20_000) == theirs, "the binder's port is not pending")
      try expect(try cast.backend.pending(back) == nil, "it is pending twice")
      try expect(try cast.frontend.pending(front) == nil, "the other end is pending")
      try cast.frontend.close(front)
      try cast.backend.close(back)
    },
    ConformanceCheck("a port can be bound once, and by the named domain only") { cast in
      let (front, back) = (try cast.frontend.openEvents(), try cast.backend.openEvents())
      let port = try cast.frontend.bindUnbound(front, cast.backend.domain)
      if let stranger = cast.stranger {
        let theirs = try stranger.openEvents()
        try refusal("a stranger's binding") { () throws(XenError) in
          _ = try stranger.bind(theirs, cast.frontend.domain, port)
        }
        try stranger.close(theirs)
      }
      _ = try cast.backend.bind(back, cast.frontend.domain, port)
      try refusal("a second binding") { () throws(XenError) in
        _ = try cast.backend.bind(back, cast.frontend.domain, port)
      }
      for absent in [0, 3000, 1 << 20] {
        try refusal("binding to port \(absent)") { () throws(XenError) in
          _ = try cast.backend.bind(back, cast.frontend.domain, absent)
        }
      }
      try cast.frontend.close(front)
      try cast.backend.close(back)
    },
    ConformanceCheck("notify makes the other end pending, in both directions") { cast in
      let channel = try Channel(cast)
      try cast.backend.notify(channel.back, channel.theirs)
      try expect(
        try cast.frontend.pending(channel.front, milliseconds: 20_000) == channel.port,
        "no event for the creator")
      try cast.frontend.notify(channel.front, channel.port)
      try expect(
        try cast.backend.pending(channel.back, milliseconds: 20_000) == channel.theirs,
        "no event for the binder")
      try channel.close(cast)
    },
    ConformanceCheck("any number of notifications of a pending port is one event, or two") { cast in
      let channel = try Channel(cast)
      for _ in 0..<100 { try cast.backend.notify(channel.back, channel.theirs) }
      try expect(try cast.frontend.pending(channel.front, milliseconds: 20_000) == channel.port, "no event")
      try cast.frontend.unmask(channel.front, channel.port)
      if try cast.frontend.pending(channel.front) != nil {
        try cast.frontend.unmask(channel.front, channel.port)
        try expect(try cast.frontend.pending(channel.front) == nil, "a third event")
      }
      try channel.close(cast)
    },
    ConformanceCheck("events for a masked port are delivered after unmask") { cast in
      let channel = try Channel(cast)
      try cast.backend.notify(channel.back, channel.theirs)
      try expect(try cast.frontend.pending(channel.front, milliseconds: 20_000) == channel.port, "no event")
      for _ in 0..<3 { try cast.backend.notify(channel.back, channel.theirs) }
      try expect(try cast.frontend.pending(channel.front) == nil, "an event while masked")
      try cast.frontend.unmask(channel.front, channel.port)
      try expect(
        try cast.frontend.pending(channel.front, milliseconds: 20_000) == channel.port,
        "no event after unmask")
      try channel.close(cast)
    },
    ConformanceCheck("the descriptor is readable while a port is pending") { cast in
      let channel = try Channel(cast)
      try expect(!(try cast.frontend.isReadable(channel.front)), "readable without an event")
      try cast.backend.notify(channel.back, channel.theirs)
      try expect(
        try cast.frontend.isReadable(channel.front, milliseconds: 20_000), "not readable with an event")
      _ = try cast.frontend.pending(channel.front)
      try expect(!(try cast.frontend.isReadable(channel.front)), "readable after the only event was taken")
      try cast.backend.notify(channel.back, channel.theirs)
      try expect(!(try cast.frontend.isReadable(channel.front)), "readable while masked")
      try cast.frontend.unmask(channel.front, channel.port)
      try expect(
        try cast.frontend.isReadable(channel.front, milliseconds: 20_000), "not readable after unmask")
      try channel.close(cast)
    },
    ConformanceCheck("several pending ports of one handle are each given once") { cast in
      let (front, back) = (try cast.frontend.openEvents(), try cast.backend.openEvents())
      var pairs: [Int: Int] = [:]
      for _ in 0..<8 {
        let port = try cast.frontend.bindUnbound(front, cast.backend.domain)
        pairs[port] = try cast.backend.bind(back, cast.frontend.domain, port)
      }
      for theirs in pairs.values { try cast.backend.notify(back, theirs) }
      var seen: Set<Int> = []
      for _ in 0..<8 {
        guard let port = try cast.frontend.pending(front, milliseconds: 20_000) else { break }
        try expect(seen.insert(port).inserted, "port \(port) was given twice")
      }
      try expect(seen == Set(pairs.keys), "given were \(seen) of \(pairs.keys)")
      try cast.frontend.close(front)
      try cast.backend.close(back)
    },
    ConformanceCheck("notify on a port that nobody has bound succeeds and is dropped") { cast in
      let (front, back) = (try cast.frontend.openEvents(), try cast.backend.openEvents())
      let port = try cast.frontend.bindUnbound(front, cast.backend.domain)
      try cast.frontend.notify(front, port)
      try expect(try cast.frontend.pending(front) == nil, "it came back to the sender")
      try cast.frontend.close(front)
      try cast.backend.close(back)
    },
    ConformanceCheck(
      "closing one end leaves the other in existence, unbound: notify is dropped, it can be bound again"
    ) {
      cast in
      let channel = try Channel(cast)
      try cast.backend.unbind(channel.back, channel.theirs)
      try cast.frontend.notify(channel.front, channel.port)
      let again = try cast.backend.bind(channel.back, cast.frontend.domain, channel.port)
      try expect(
        try cast.backend.pending(channel.back, milliseconds: 20_000) == again, "not pending after rebinding")
      try cast.backend.unmask(channel.back, again)
      try cast.frontend.notify(channel.front, channel.port)
      try expect(
        try cast.backend.pending(channel.back, milliseconds: 20_000) == again, "no event after rebinding")
      try channel.close(cast)
    },
    ConformanceCheck("closing a handle closes its ports") { cast in
      let channel = try Channel(cast)
      try cast.backend.close(channel.back)
      try cast.frontend.notify(channel.front, channel.port)
      let again = try cast.backend.openEvents()
      _ = try cast.backend.bind(again, cast.frontend.domain, channel.port)
      try cast.frontend.close(channel.front)
      try cast.backend.close(again)
    },
    ConformanceCheck("a port of another handle cannot be used") { cast in
      let (one, two) = (try cast.frontend.openEvents(), try cast.frontend.openEvents())
      let port = try cast.frontend.bindUnbound(one, cast.backend.domain)
      try refusal("notify") { () throws(XenError) in try cast.frontend.notify(two, port) }
      try refusal("unbind") { () throws(XenError) in try cast.frontend.unbind(two, port) }
      try cast.frontend.close(one)
      try cast.frontend.close(two)
    },
  ]
}
