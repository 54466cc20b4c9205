// SPDX-License-Identifier: Apache-2.0
//
// The loopback as a process sees it that may be killed. What a kill takes from a backend besides its mappings and
// ports is the chance to say anything: from then on its xenstore fails, so that the nodes stay as they were.

import Synchronization
import Xen
import XenLoopback

final class MortalSystem: XenSystem {
  private let inner: LoopbackDomain
  private let life = Life()

  final class Life: Sendable {
    let isOver = Atomic<Bool>(false)
    func check() throws(XenError) {
      if isOver.load(ordering: .sequentiallyConsistent) {
        throw XenError(.disconnected, "this process was killed")
      }
    }
  }

  init(_ inner: LoopbackDomain) { self.inner = inner }

  func die() { life.isOver.store(true, ordering: .sequentiallyConsistent) }

  var description: String { inner.description }
  var identity: String? { inner.identity }
  func openGrantSharing() throws(XenError) -> any GrantSharing { try inner.openGrantSharing() }
  func openGrantMapping() throws(XenError) -> any GrantMapping { try inner.openGrantMapping() }
  func openEventChannels() throws(XenError) -> any EventChannels { try inner.openEventChannels() }
  func openXenStore() throws(XenError) -> any XenStore { MortalStore(try inner.openXenStore(), life) }
}

private final class MortalStore: XenStore {
  private let inner: any XenStore
  private let life: MortalSystem.Life

  init(_ inner: any XenStore, _ life: MortalSystem.Life) {
    self.inner = inner
    self.life = life
  }

  func transaction<Value>(
    _ body: (any XenStoreOperations) throws(XenError) -> Value
  ) throws(XenError) -> Value {
    try life.check()
    return try inner.transaction(body)
  }
  func watch(_ path: String, token: String) throws(XenError) {
    try life.check()
    try inner.watch(path, token: token)
  }
  func unwatch(_ path: String, token: String) throws(XenError) {
    try life.check()
    try inner.unwatch(path, token: token)
  }
  var fileDescriptor: Int32 { inner.fileDescriptor }
  func nextWatchEvent() throws(XenError) -> XenStoreWatchEvent? {
    try life.check()
    return try inner.nextWatchEvent()
  }
  func readBytes(_ path: String) throws(XenError) -> [UInt8]? {
    try life.check()
    return try inner.readBytes(path)
  }
  func write(_ path: String, _ value: [UInt8]) throws(XenError) {
    try life.check()
    try inner.write(path, value)
  }
  func list(_ path: String) throws(XenError) -> [String]? {
    try life.check()
    return try inner.list(path)
  }
  func makeDirectory(_ path: String) throws(XenError) {
    try life.check()
    try inner.makeDirectory(path)
  }
  func remove(_ path: String) throws(XenError) {
    try life.check()
    try inner.remove(path)
  }
  func setPermissions(_ path: String, _ permissions: [XenStorePermission]) throws(XenError) {
    try life.check()
    try inner.setPermissions(path, permissions)
  }
  func permissions(_ path: String) throws(XenError) -> [XenStorePermission]? {
    try life.check()
    return try inner.permissions(path)
  }
}
