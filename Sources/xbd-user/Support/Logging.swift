// SPDX-License-Identifier: Apache-2.0

import Logging

/// The log: lines on stderr, so that stdout has only what a program would read.
enum Log {
  /// - Parameter verbosity: how often `--verbose` was given.
  static func start(verbosity: Int) -> Logger {
    LoggingSystem.bootstrap { label in
      var handler = StreamLogHandler.standardError(label: label)
      handler.logLevel = verbosity == 0 ? .warning : verbosity == 1 ? .info : .debug
      return handler
    }
    return Logger(label: "xbd-user")
  }
}
