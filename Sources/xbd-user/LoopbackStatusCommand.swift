// SPDX-License-Identifier: Apache-2.0

import ArgumentParser
import Xen
import XenLoopback

/// `xbd-user loopback status`: who holds what on a loopback host.
struct LoopbackStatusCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "status",
    abstract: "Show what each domain of a running loopback host holds: grants, mappings, ports, watches.")

  @Argument(help: "The directory of a running loopback host.")
  var directory: String

  @Flag(help: "Print JSON.")
  var json = false

  func run() throws {
    let domains = try LoopbackDomainSurvey.all(in: directory).map(DomainCounts.init)
    guard !json else { return try Console.result(try JSONText.encode(domains)) }
    var rows = [
      [
        "domain", "joins", "shared", "limit", "grants", "mapped", "mappings", "ports", "connections",
        "watches",
        "transactions", "nodes",
      ]
    ]
    rows += domains.map { $0.row.map { String($0) } }
    let widths = rows[0].indices.map { column in rows.map { $0[column].count }.max() ?? 0 }
    let lines = rows.map { row in
      zip(row, widths).map { String(repeating: " ", count: $1 - $0.count) + $0 }.joined(separator: "  ")
    }
    try Console.result(lines.joined(separator: "\n"))
  }
}

/// A domain's counts as they are printed.
private struct DomainCounts: Encodable {
  let domain, joins, pagesShared, pageLimit, grants, grantsMapped, mappings, ports: Int
  let storeConnections, watches, transactions, nodes: Int

  init(_ survey: LoopbackDomainSurvey) {
    domain = Int(survey.domain.rawValue)
    joins = survey.joins
    pagesShared = survey.pagesShared
    pageLimit = survey.pageLimit
    grants = survey.grants
    grantsMapped = survey.grantsMapped
    mappings = survey.mappings
    ports = survey.ports
    storeConnections = survey.storeConnections
    watches = survey.watches
    transactions = survey.transactions
    nodes = survey.nodes
  }

  var row: [Int] {
    [
      domain, joins, pagesShared, pageLimit, grants, grantsMapped, mappings, ports, storeConnections, watches,
      transactions, nodes,
    ]
  }
}
