// SPDX-License-Identifier: Apache-2.0

import XbdBack
import XbdFront
import Xen

/// What ends a command: one sentence for a person, printed as "Error: …", and a non-zero exit.
struct Failure: Error, CustomStringConvertible {
  let description: String

  init(_ sentence: String) {
    description = sentence
  }
}
