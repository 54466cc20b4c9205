// SPDX-License-Identifier: Apache-2.0

import Logging

/// Keeps the sentences that a device says to a person.
struct Said: LogHandler {
  let sentences = Guarded<[String]>([])
  var logLevel = Logger.Level.info
  var metadata = Logger.Metadata()
  subscript(metadataKey key: String) -> Logger.Metadata.Value? {
    get { metadata[key] }
    set { metadata[key] = newValue }
  }
  func log(event: LogEvent) {
    sentences.with { $0.append("\(event.message)") }
  }

  var logger: Logger { Logger(label: "said") { _ in self } }
  var all: [String] { sentences.with { $0 } }
}
