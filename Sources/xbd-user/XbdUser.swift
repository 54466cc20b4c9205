// SPDX-License-Identifier: Apache-2.0

import ArgumentParser

@main
struct XbdUser: ParsableCommand {
  static let configuration = CommandConfiguration(commandName: "xbd-user")
}
