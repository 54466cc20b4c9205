// SPDX-License-Identifier: Apache-2.0
//
// What a user may ask of the frontend, as `serve` and `measure` take it.

public import ArgumentParser
public import Blkif
public import XbdFront

extension CopyMode: ExpressibleByArgument {}
extension ABI: ExpressibleByArgument {}

/// An answer on a command line.
enum YesNo: String, ExpressibleByArgument, CaseIterable {
  case yes
  case no
}

/// Options of the frontend.
struct FrontendArguments: ParsableArguments {
  @OptionGroup
  var negotiation: NegotiationArguments

  @Option(
    help: "How payloads travel: in the granted pages themselves (direct) or copied to and from them (bounce)."
  )
  var copy = CopyMode.direct

  @Option(
    help: "Whether the backend may see what earlier requests left in a page; overrides the trusted node.")
  var trusted: YesNo?

  @Option(help: "The layout of requests; anything but this machine's own is for testing backends.")
  var abi = ABI.native

  @Option(help: "Seconds that the backend may take for each step of the handshake.")
  var timeout = 30

  @Option(
    help: ArgumentHelp(
      "How long the backend may stay at Initialising before the ring is published all the same, as MirageOS's wants it.",
      valueName: "milliseconds"))
  var initialisingGrace = 2000

  @Option(
    help: """
      Seconds that the backend may leave a request unanswered; then the device is given up, or with "serve --reconnect" this \
      backend. 0: for ever.
      """
  )
  var requestTimeout = 0

  mutating func validate() throws {
    guard (0...86400).contains(requestTimeout) else {
      throw ValidationError("--request-timeout takes 0 to 86400 seconds")
    }
    guard (0...86_400_000).contains(initialisingGrace) else {
      throw ValidationError("--initialising-grace takes 0 to 86400000 milliseconds")
    }
    guard (1...86400).contains(timeout) else { throw ValidationError("--timeout takes 1 to 86400 seconds") }
  }

  var options: FrontendOptions {
    var options = FrontendOptions()
    negotiation.apply(to: &options)
    options.copy = copy
    options.trusted = trusted.map { $0 == .yes }
    options.abi = abi
    options.handshakeTimeout = .seconds(timeout)
    options.initialisingGrace = .milliseconds(initialisingGrace)
    options.requestTimeout = requestTimeout == 0 ? nil : .seconds(requestTimeout)
    return options
  }
}
