// SPDX-License-Identifier: Apache-2.0
//
// What `serve` does when the backend goes.

import ArgumentParser
import XbdFront

/// Options about backends that go and come back.
struct ReconnectArguments: ParsableArguments {
  @Flag(
    help: """
      When the backend goes, keep clients and their requests and connect to the next one; without it they are \
      told ESHUTDOWN, and the command ends.
      """)
  var reconnect = false

  @Option(
    help: ArgumentHelp(
      "With --reconnect: how long requests may wait for another backend (default: 60).", valueName: "seconds")
  )
  var reconnectTimeout: Int?

  mutating func validate() throws {
    guard let reconnectTimeout else { return }
    guard reconnect else {
      throw ValidationError("--reconnect-timeout says how long --reconnect waits: give both")
    }
    guard (1...86400).contains(reconnectTimeout) else {
      throw ValidationError("--reconnect-timeout takes 1 to 86400 seconds")
    }
  }

  func apply(to options: inout FrontendOptions) {
    options.reconnects = reconnect
    if let reconnectTimeout { options.reconnectTimeout = .seconds(reconnectTimeout) }
  }
}
