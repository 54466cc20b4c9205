// SPDX-License-Identifier: Apache-2.0
//
// Which device a command connects to, as `serve` and `measure` take it.

import ArgumentParser

/// A device, an image, or a device of a running loopback host.
struct DeviceArguments: ParsableArguments {
  @Argument(help: "A virtual device number (51728), a name (xvdb), or the path of a frontend directory.")
  var device: String?

  @Option(
    help: ArgumentHelp(
      "Without a device: an image file, memory:SIZE or null:SIZE for the reference backend. With one: the directory of a running loopback host.",
      valueName: "image|directory"))
  var loopback: String?

  mutating func validate() throws {
    guard device != nil || loopback != nil else {
      throw ValidationError("name a device (xvdb), or an image with --loopback (disk.img, memory:1G)")
    }
  }
}
