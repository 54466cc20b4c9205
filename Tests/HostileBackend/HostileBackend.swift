// SPDX-License-Identifier: Apache-2.0
//
// A backend on the loopback that does what it should, except where its plan says otherwise. One thread: xenstore
// (HostileBackend+Store), the ring (HostileBackend+Ring), granted pages (HostileGrants). Whatever the frontend's
// domain grants is looked through for bytes that were never meant for a backend, all the time.

internal import Glibc
internal import Platform
internal import Synchronization
internal import SystemPackage
internal import Xen
internal import XenLoopback

/// What a backend has seen; read by the test's thread.
public struct Observations: Sendable {
  /// Requests taken.
  public var taken = 0
  /// Every request, while `keepsRequests` is set.
  public var requests: [HostileRequest] = []
  /// Notifications received.
  public var events = 0
  /// Notifications sent.
  public var notified = 0
  /// Times that the frontend connected.
  public var connections = 0
  /// The frontend's states as they were seen.
  public var states: [UInt8] = []
  /// Looks through granted pages, and what was found that should not be there.
  public var pagesScanned = 0
  /// What was found in granted pages that should not be there.
  public var leaks: [String] = []
  /// What a strict backend would complain about.
  public var complaints: [String] = []
  /// Pages mapped at this moment, besides the ring.
  public var mapped = 0
  /// Mappings that could not be made.
  public var refusedMappings = 0
  /// Writes to the own state node.
  public var stateWrites = 0
}

/// The backend of a `HostileMachine`'s device.
public final class HostileBackend: @unchecked Sendable {
  // SAFETY: everything but `shared`, `stopping` and `control` belongs to the backend's thread.

  /// Bytes that the test puts into memory that no backend may see: eight bytes of it anywhere are a leak.
  public static let canary: [UInt8] = [0xC7, 0x5E, 0xC2, 0xE7, 0xCA, 0x9A, 0x21, 0xED]

  struct Shared {
    var plan: Plan
    var observations = Observations()
    var mustReplan = false
    /// Things to be done on the backend's thread.
    var errands: [@Sendable (HostileBackend) -> Void] = []
  }

  /// What it serves.
  public let disk: HostileDisk
  let machine: HostileMachine
  let system: LoopbackDomain
  let store: any XenStore
  let nodes: [String: [UInt8]]
  /// What `put` wrote in their place; its own thread's.
  var changed: [String: [UInt8]] = [:]
  let shared: Locked<Shared>
  private let stopping = Atomic<Bool>(false)
  private let control: WakeUp
  private var thread: DedicatedThread?

  // The connection, on the backend's thread.
  var plan: Plan
  var state: UInt8 = 1
  var ring: HostileRing?
  var grants: HostileGrants?
  var channels: (any EventChannels)?
  var port: EventChannelPort?
  var isChannelClosed = false
  var taken = 0
  var held: [HostileRequest] = []
  var heldAnswers: [Answer] = []
  var rewrite: [HostileRequest] = []
  var ringReferences: Set<UInt32> = []
  /// A notification came since the ring was last looked at.
  var wasKicked = false
  /// Requests that will never be answered.
  var withheld = 0
  /// Mappings that outlived their connection.
  var kept: [HostileGrants] = []
  var keepsRequests = false
  var checksTails = false
  var answers: [Answer] = []
  var late: [(due: UInt64, answer: Answer)] = []
  var repeats: [Answer] = []
  var bounces = 0
  var hasFollowedLate = false
  /// The ring is not granted any more.
  var isOrphaned = false
  var lastSeenFrontend: UInt8 = 0
  var random: UInt64 = 1
  var flipper: Flipper?

  struct Answer {
    var request: HostileRequest
    var id: UInt64
    var operation: UInt8
    var status: Int16
  }

  /// A wake-up that both threads hold.
  final class WakeUp: Sendable {
    let counter: EventCounter
    init() throws(Errno) { counter = try EventCounter() }
  }

  /// What every honest backend has; a plan's `.node` faults go over it.
  public static let defaultNodes: [String: String] = [
    "max-ring-page-order": "4", "multi-queue-max-queues": "1", "feature-max-indirect-segments": "256",
    "feature-persistent": "1", "feature-flush-cache": "1", "feature-barrier": "1", "feature-discard": "1",
    "discard-granularity": "4096", "discard-alignment": "0", "discard-secure": "0", "info": "0",
    "sector-size": "512", "physical-sector-size": "512",
  ]

  /// Starts a backend; it publishes its nodes and goes to InitWait.
  ///
  /// - Parameters:
  ///   - nodes: over the default ones.
  public init(
    _ machine: HostileMachine, plan: Plan = Plan(), nodes: [String: String] = [:], diskBytes: Int = 4 << 20
  ) throws {
    self.machine = machine
    self.plan = plan
    disk = HostileDisk(byteCount: diskBytes)
    system = try LoopbackDomain(joining: machine.host.directory, domain: .dom0)
    store = try system.openXenStore()
    var all = Self.defaultNodes.merging(nodes) { $1 }
    all["sectors"] = all["sectors"] ?? String(diskBytes / 512)
    self.nodes = all.mapValues { Array($0.utf8) }
    shared = Locked(Shared(plan: plan))
    control = try WakeUp()
    let loop = LoopBox(try EventLoop(capacity: 8))
    try loop.loop.add(store.fileDescriptor, .readable, token: 1)
    try loop.loop.add(control.counter.fileDescriptor, .readable, token: 2)
    try store.watch(machine.device.frontendPath + "/state", token: "front")
    try publishNodes()
    thread = try DedicatedThread(name: "hostile", stackSize: 2 << 20) { [self] in run(loop) }
  }

  /// Carries the loop to the thread.
  final class LoopBox: @unchecked Sendable {
    var loop: EventLoop
    init(_ loop: consuming EventLoop) { self.loop = loop }
  }

  // MARK: From the test's thread

  /// Ends the backend as a domain's death would: without a word.
  public func stop() {
    stopping.store(true, ordering: .releasing)
    control.counter.signal()
    thread?.join()
    thread = nil
  }

  deinit {
    precondition(thread == nil, "a hostile backend must be stopped")
  }

  /// What was seen so far.
  public var observations: Observations { shared.with { $0.observations } }

  /// Notes every request from now on.
  public func keepRequests() { perform { $0.keepsRequests = true } }

  /// Complains of anything but zeroes behind what a write covers of its pages, from now on.
  public func checkTails() { perform { $0.checksTails = true } }

  /// Forgets its complaints.
  public func forgive() { observe { $0.complaints = [] } }

  /// Looks through everything that it can still see, of this connection or of earlier ones.
  ///
  /// - Returns: pages that it has mapped, and how many of them hold anything but zeroes. Waits for it.
  public func lookAtEverything() -> (pages: Int, references: Set<UInt32>, filled: Int) {
    let answer = Locked<(Int, Set<UInt32>, Int)?>(nil)
    perform { backend in
      var references: Set<UInt32> = []
      var filled = 0
      for grants in backend.kept + [backend.grants].compactMap({ $0 }) {
        for (reference, page) in grants.pages {
          references.insert(reference)
          let words = UnsafeRawBufferPointer(start: page, count: 4096).bindMemory(to: UInt64.self)
          if words.contains(where: { $0 != 0 }) { filled += 1 }
        }
      }
      answer.with { $0 = (references.count, references, filled) }
    }
    while true {
      if let answer = answer.with({ $0 }) { return answer }
      usleep(1000)
    }
  }

  /// Writes its state on its own thread.
  public func go(to state: UInt8) { perform { $0.setState(state) } }

  /// Writes or removes one of its nodes, without a word.
  public func put(_ key: String, _ value: String?) {
    perform { backend in
      backend.changed[key] = value.map { Array($0.utf8) }
      if let value {
        try? backend.store.write("\(backend.path)/\(key)", value)
      } else {
        try? backend.store.remove("\(backend.path)/\(key)")
      }
    }
  }

  /// Changes what it does wrong, and waits until it does.
  public func follow(_ plan: Plan) {
    shared.with {
      $0.plan = plan
      $0.mustReplan = true
    }
    catchUp()
  }

  /// Waits until the backend's thread has done what it was asked to.
  public func catchUp() {
    let done = Locked(false)
    perform { _ in done.with { $0 = true } }
    while !done.with({ $0 }) { usleep(200) }
  }

  /// Does something on the backend's thread.
  public func perform(_ errand: @escaping @Sendable (HostileBackend) -> Void) {
    shared.with { $0.errands.append(errand) }
    control.counter.signal()
  }

  // MARK: The thread

  private func run(_ box: LoopBox) {
    var channelDescriptor: Int32 = -1
    while true {
      takeErrands()
      // Behind the counter's drain: one that is stopped in between would sleep on for good.
      if stopping.load(ordering: .acquiring) { break }
      receiveWatches()
      if let channels, channels.fileDescriptor != channelDescriptor {
        if channelDescriptor >= 0 { box.loop.remove(channelDescriptor) }
        channelDescriptor = channels.fileDescriptor
        try? box.loop.add(channelDescriptor, .readable, token: 3)
      }
      if channels == nil, channelDescriptor >= 0 {
        box.loop.remove(channelDescriptor)
        channelDescriptor = -1
      }
      receiveEvents()
      var busy = serve()
      busy = misbehave() || busy
      if busy || !arm() { continue }
      _ = box.loop.wait(milliseconds: isRestless ? 1 : nil)
    }
    letGo(keeping: false)
  }

  /// Faults that act by themselves, and answers that are due later.
  private var isRestless: Bool { !late.isEmpty || !held.isEmpty || plan.faults.contains { $0.isRestless } }

  private func takeErrands() {
    control.counter.drain()
    let (plan, errands) = shared.with { shared -> (Plan?, [@Sendable (HostileBackend) -> Void]) in
      defer {
        shared.mustReplan = false
        shared.errands = []
      }
      return (shared.mustReplan ? shared.plan : nil, shared.errands)
    }
    if let plan {
      self.plan = plan
      taken = 0
      bounces = 0
      applyStorePlan()
      if !has(.flipResponses) {
        flipper?.stop()
        flipper = nil
      }
    }
    for errand in errands { errand(self) }
  }

  func observe(_ change: (inout Observations) -> Void) { shared.with { change(&$0.observations) } }

  // MARK: The plan

  /// Whether faults at the ring act by now.
  var isActive: Bool { taken > plan.after || (plan.after == 0) }

  func has(_ fault: Fault) -> Bool { isActive && plan.faults.contains(fault) }

  /// The first active fault that `find` knows.
  func fault<Value>(_ find: (Fault) -> Value?) -> Value? {
    guard isActive else { return nil }
    for fault in plan.faults { if let value = find(fault) { return value } }
    return nil
  }

  func nextRandom() -> UInt64 {
    random = random &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
    return random >> 16 ^ random << 48
  }
}

/// A disk in memory, each byte of which depends on its place.
public final class HostileDisk: @unchecked Sendable {
  // SAFETY: the backend's thread writes it; tests read it while no request is in flight.
  /// All of it.
  public let bytes: UnsafeMutableBufferPointer<UInt8>

  init(byteCount: Int) {
    bytes = .allocate(capacity: byteCount)
    // Never eight bytes of the canary: each byte is below 0x80.
    for index in 0..<byteCount {
      bytes[index] = UInt8(truncatingIfNeeded: (index ^ index >> 9 ^ index >> 16) & 0x7F)
    }
  }

  deinit { bytes.deallocate() }

  /// A stretch of it.
  public func contents(_ offset: Int, _ count: Int) -> [UInt8] { Array(bytes[offset..<offset + count]) }
}

/// A value behind a POSIX mutex, which ThreadSanitizer understands.
public final class Locked<Value>: @unchecked Sendable {
  private let mutex: UnsafeMutablePointer<pthread_mutex_t>
  private var value: Value

  /// Makes one.
  public init(_ value: Value) {
    mutex = .allocate(capacity: 1)
    pthread_mutex_init(mutex, nil)
    self.value = value
  }

  deinit {
    pthread_mutex_destroy(mutex)
    mutex.deallocate()
  }

  /// Uses the value with the lock held.
  public func with<Result>(_ body: (inout Value) -> Result) -> Result {
    pthread_mutex_lock(mutex)
    defer { pthread_mutex_unlock(mutex) }
    return body(&value)
  }
}
