// SPDX-License-Identifier: Apache-2.0

import Logging

extension Logger {
  /// Says nothing.
  static var quiet: Logger {
    Logger(label: "test", factory: { _ in SwiftLogNoOpLogHandler() })
  }
}
