// SPDX-License-Identifier: Apache-2.0

import ArgumentParser
import Blkif
import CXen
import Glibc
import Platform
import XbdBack
import XenLoopback
import Xen

/// `xbd-user backend`: the reference backend in a process of its own.
struct BackendCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "backend",
    abstract: "Serve an image with the reference backend, for a frontend in another process.",
    discussion: """
      Creates the device on the loopback host, as a toolstack would, and serves it until SIGTERM; then the \
      frontend is asked to close and the device is removed.
      """)

  @Argument(help: "An image file, memory:SIZE or null:SIZE.")
  var image: String

  @Option(help: ArgumentHelp("The directory of a running loopback host.", valueName: "directory"))
  var loopback: String

  @Option(help: "The device's name or number.")
  var device = "xvda"

  @Flag(help: "Refuse writes.")
  var readOnly = false

  @Option(help: ArgumentHelp("Queues that the backend serves, each with a thread.", valueName: "n"))
  var maxQueues = 4

  @Flag(help: ArgumentHelp("End when whoever started this command ends.", visibility: .hidden))
  var withParent = false

  @Flag(name: .shortAndLong, help: "Say more on stderr.")
  var verbose: Int

  @OptionGroup(title: "The reference backend")
  var storage: StorageArguments

  func run() throws {
    let signals = try Signals([SIGTERM, SIGINT, SIGHUP])
    if withParent { _ = cxen_end_with_parent(SIGTERM) }
    let logger = Log.start(verbosity: verbose)
    guard let device = VirtualDevice(device) else {
      throw Failure("\"\(self.device)\" is no virtual block device; give a name (xvdb) or a number (51728)")
    }
    let disk = try storage.open(image, readOnly: readOnly)
    let toolstack = try LoopbackToolstack(directory: loopback)
    var nodes = LoopbackBlockDevice(
      virtualDevice: device.number, name: device.name ?? String(device.number), frontend: loopbackFrontend)
    nodes.parameters = image
    nodes.isReadOnly = readOnly
    // What an earlier backend left when it died is taken over; its frontend finds it closed and starts again.
    if try toolstack.store.read(nodes.backendPath + "/" + Key.state) == nil { try toolstack.attach(nodes) }
    let system = try LoopbackDomain(joining: loopback, domain: .dom0)
    let backend = try Backend(system: system, logger: logger)
    try backend.add(
      directory: nodes.backendPath, storage: disk,
      configuration: storage.configuration(readOnly: readOnly, queues: maxQueues))
    Console.line("\(device) for domain \(loopbackFrontend): \(image), \(disk.byteCount) bytes")
    var wait = pollfd(fd: signals.fileDescriptor, events: Int16(POLLIN), revents: 0)
    while signals.next() == nil { _ = poll(&wait, 1, -1) }
    backend.stop(waiting: 5000)
    try toolstack.forget(nodes)
  }
}
