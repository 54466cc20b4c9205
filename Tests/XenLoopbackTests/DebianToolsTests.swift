// SPDX-License-Identifier: Apache-2.0
//
// The tools of Debian's xenstore-utils against the loopback's xenstore, unmodified.

import Glibc
import Platform
import SystemPackage
import Testing
import Xen

@testable import XenLoopback

@Suite(.enabled(if: access("/usr/bin/xenstore-ls", X_OK) == 0, "needs Debian's xenstore-utils"))
struct DebianToolsTests {
  /// Runs a shell line as a client of a domain.
  private func shell(_ machine: Machine, _ domain: UInt16, _ line: String) throws -> (
    output: String, status: Int32
  ) {
    let socket = LoopbackPaths.store(machine.host.directory, domain)
    let command = "export XENSTORED_PATH='\(socket)'; \(line)"
    var started = popen(command, "re")
    // Under AddressSanitizer, beside everything else, there was once no memory for a child.
    for _ in 0..<100 where started == nil && [ENOMEM, EAGAIN].contains(errno) {
      usleep(100_000)
      started = popen(command, "re")
    }
    guard let pipe = started else { throw Errno.current }
    var output: [UInt8] = []
    var byte = getc(pipe)
    while byte != EOF {
      output.append(UInt8(truncatingIfNeeded: byte))
      byte = getc(pipe)
    }
    return (String(decoding: output, as: UTF8.self), pclose(pipe) >> 8)
  }

  @Test func writeReadListExistsAndRemove() throws {
    let machine = try Machine()
    #expect(try shell(machine, 0, "xenstore-write /a/b hello /a/c 'two words'").status == 0)
    #expect(try shell(machine, 0, "xenstore-read /a/b /a/c").output == "hello\ntwo words\n")
    #expect(try shell(machine, 0, "xenstore-list /a").output == "b\nc\n")
    #expect(try shell(machine, 0, "xenstore-exists /a/b").status == 0)
    #expect(try shell(machine, 0, "xenstore-rm /a/b && xenstore-exists /a/b").status != 0)
    #expect(try shell(machine, 1, "xenstore-read domid").output == "1\n")
    #expect(try shell(machine, 1, "xenstore-read /a/c 2>&1").status != 0)
  }

  @Test func listTheTreeWithPermissionsAndChangeThem() throws {
    let machine = try Machine()
    #expect(try shell(machine, 0, "xenstore-write /p/q v; xenstore-chmod /p/q n0 r5 b1").status == 0)
    let tree = try shell(machine, 0, "xenstore-ls -fp /p").output
    #expect(tree == "/p/q = \"v\"   (n0,r5,b1)\n")
    #expect(try shell(machine, 1, "xenstore-write /p/q changed && xenstore-read /p/q").output == "changed\n")
    // More children than fit into one reply.
    _ = try shell(
      machine, 0, "for i in $(seq 1 600); do echo /many/child-number-$i v; done | xargs -n 200 xenstore-write"
    )
    #expect(try shell(machine, 0, "xenstore-list /many | wc -l").output == "600\n")
  }

  @Test func watchPrintsWhatChanges() throws {
    let machine = try Machine()
    let output = try shell(
      machine, 0,
      "xenstore-watch -n 3 /w | while read line; do echo $line; case $line in "
        + "/w) xenstore-write /w/x 1 ;; /w/x) xenstore-exists /w/x && xenstore-rm /w/x ;; esac; done"
    ).output
    #expect(output == "/w\n/w/x\n/w/x\n")
  }
}
