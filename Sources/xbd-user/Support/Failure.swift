// SPDX-License-Identifier: Apache-2.0

/// What ends a command: one sentence for a person, printed as "Error: …", and a non-zero exit.
struct Failure: Error, CustomStringConvertible {
  let description: String

  init(_ sentence: String) {
    description = sentence
  }
}
