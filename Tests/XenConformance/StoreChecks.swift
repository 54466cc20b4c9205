// SPDX-License-Identifier: Apache-2.0
//
// XenStore's guarantees.

import Xen

extension ConformanceCheck {
  /// The checks of xenstore.
  public static let store: [ConformanceCheck] = [
    ConformanceCheck("relative paths begin at the connection's own domain") { cast in
      let store = try cast.frontend.openStore()
      let home = "/local/domain/\(cast.frontend.domain)"
      let own =
        cast.scratchPath.hasPrefix(home + "/") ? String(cast.scratchPath.dropFirst(home.count + 1)) : nil
      guard let own else { throw ConformanceFailure(description: "\(cast.scratchPath) is not under \(home)") }
      try cast.frontend.write(store, "\(own)/relative", "x")
      try expect(
        try cast.frontend.read(store, "\(cast.scratchPath)/relative") == "x", "written somewhere else")
      try cast.frontend.close(store)
    },
    ConformanceCheck("writing creates missing parents, removing takes everything under a node") { cast in
      let store = try cast.frontend.openStore()
      let path = cast.scratchPath + "/tree"
      try cast.frontend.write(store, path + "/a/b/c", "deep")
      try expect(try cast.frontend.read(store, path + "/a") == "", "a parent was not created empty")
      try expect(try cast.frontend.list(store, path + "/a") == ["b"], "the child is not listed")
      try cast.frontend.remove(store, path)
      for gone in ["", "/a", "/a/b/c"] {
        try expect(try cast.frontend.read(store, path + gone) == nil, "\(path)\(gone) is still there")
      }
      try expect(try cast.frontend.list(store, path) == nil, "\(path) can still be listed")
      try cast.frontend.remove(store, path)
      try cast.frontend.close(store)
    },
    ConformanceCheck("a value may be any bytes, and 2,000 of them") { cast in
      let store = try cast.frontend.openStore()
      let every = (0..<2000).map { UInt8(truncatingIfNeeded: $0) }
      try cast.frontend.order("write", "\(store)", cast.scratchPath + "/bytes", hexadecimal(every))
      let back = bytes(try cast.frontend.perform(["read", "\(store)", cast.scratchPath + "/bytes"])[0])
      try expect(back == every, "\(back.count) bytes came back")
      try cast.frontend.close(store)
    },
    ConformanceCheck("what one domain writes the other reads") { cast in
      let (front, back) = (try cast.frontend.openStore(), try cast.backend.openStore())
      try cast.frontend.write(front, cast.scratchPath + "/shared", "one")
      try expect(
        try cast.backend.read(back, cast.scratchPath + "/shared") == "one", "the backend reads something else"
      )
      try cast.backend.write(back, cast.scratchPath + "/shared", "two")
      try expect(
        try cast.frontend.read(front, cast.scratchPath + "/shared") == "two",
        "the frontend reads the old value")
      try cast.frontend.close(front)
      try cast.backend.close(back)
    },
    ConformanceCheck("a transaction sees a snapshot, and runs again when somebody else changed what it read")
    { cast in
      let store = try cast.frontend.openStore()
      let path = cast.scratchPath + "/interfere"
      try cast.frontend.write(store, path, "before")
      let seen = try cast.frontend.perform(["interfere", "\(store)", path])
      try expect(
        seen == ["before", "before", "theirs", "theirs", "theirs", "theirs", "ours"],
        "seen by the transaction and outside it: \(seen)")
      try cast.frontend.close(store)
    },
    ConformanceCheck("a transaction whose body throws changes nothing") { cast in
      let store = try cast.frontend.openStore()
      try cast.frontend.write(store, cast.scratchPath + "/abort", "kept")
      try cast.frontend.order("abort", "\(store)", cast.scratchPath + "/abort")
      try expect(try cast.frontend.read(store, cast.scratchPath + "/abort") == "kept", "it did")
      try cast.frontend.close(store)
    },
    ConformanceCheck("a watch fires at once, then for each change at or under its path, in order") { cast in
      let (front, back) = (try cast.frontend.openStore(), try cast.backend.openStore())
      let path = cast.scratchPath + "/watched"
      try cast.frontend.watch(front, path, "token")
      let first = try cast.frontend.event(front)
      try expect(
        first?.path == path && first?.token == "token", "the first event is \(String(describing: first))")
      let changes = ["", "/x", "/x/y", "/z"].map { path + $0 }
      for change in changes { try cast.backend.write(back, change, "v") }
      try cast.backend.remove(back, path + "/x")
      for change in changes + [path + "/x"] {
        let event = try cast.frontend.event(front)
        try expect(event?.path == change, "instead of \(change): \(String(describing: event))")
      }
      try cast.backend.write(back, path + "-beside", "v")
      try cast.frontend.unwatch(front, path, "token")
      try cast.backend.write(back, path, "v")
      try expect(
        try cast.frontend.event(front, milliseconds: 50) == nil, "an event of an ended watch or beside it")
      try cast.frontend.close(front)
      try cast.backend.close(back)
    },
    ConformanceCheck("a relative watch reports relative paths") { cast in
      let store = try cast.frontend.openStore()
      let home = "/local/domain/\(cast.frontend.domain)/"
      let own = String(cast.scratchPath.dropFirst(home.count)) + "/relative-watch"
      try cast.frontend.watch(store, own, "t")
      try expect(try cast.frontend.event(store)?.path == own, "the first event's path")
      try cast.frontend.write(store, home + own + "/below", "v")
      try expect(try cast.frontend.event(store)?.path == own + "/below", "the second event's path")
      try cast.frontend.close(store)
    },
    ConformanceCheck("the descriptor is readable while a watch event waits") { cast in
      let store = try cast.frontend.openStore()
      try expect(!(try cast.frontend.isReadable(store)), "readable without a watch")
      try cast.frontend.watch(store, cast.scratchPath + "/readable", "t")
      try expect(try cast.frontend.isReadable(store, milliseconds: 20_000), "not readable with an event")
      _ = try cast.frontend.event(store)
      try expect(!(try cast.frontend.isReadable(store)), "readable after the only event was taken")
      try cast.frontend.close(store)
    },
    ConformanceCheck(
      "one path may be watched with several tokens, and ending a watch that is none ends no other"
    ) {
      cast in
      let store = try cast.frontend.openStore()
      try cast.frontend.watch(store, cast.scratchPath, "one")
      try cast.frontend.watch(store, cast.scratchPath, "other")
      var tokens: Set<String> = []
      while let event = try cast.frontend.event(store, milliseconds: tokens.count < 2 ? 20_000 : 0) {
        tokens.insert(event.token)
      }
      try expect(tokens == ["one", "other"], "events of \(tokens)")
      // xenstored refuses it, Linux's /dev/xen/xenbus says nothing.
      try? cast.frontend.unwatch(store, cast.scratchPath, "none")
      try cast.frontend.write(store, cast.scratchPath, "news")
      tokens = []
      while let event = try cast.frontend.event(store, milliseconds: tokens.count < 2 ? 20_000 : 0) {
        tokens.insert(event.token)
      }
      try expect(tokens == ["one", "other"], "after that, events of \(tokens)")
      try cast.frontend.close(store)
    },
    ConformanceCheck("paths that are none are refused") { cast in
      let store = try cast.frontend.openStore()
      for path in [
        "/", "//", cast.scratchPath + "/", cast.scratchPath + "//x", cast.scratchPath + "/a:b", "@x",
      ] {
        try refusal("writing \(path)") { () throws(XenError) in try cast.frontend.write(store, path, "x") }
      }
      try cast.frontend.close(store)
    },
  ]
}
