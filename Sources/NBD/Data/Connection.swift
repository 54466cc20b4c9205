// SPDX-License-Identifier: Apache-2.0
//
// One client as its worker keeps it: what came and is not parsed yet, what waits to be sent, and where it stands.
//
//   socket ──► buffer ──► requests ──► target ──► replies ──► socket
//          └─► the target's own memory (large payloads)

internal import Platform

/// How far a connection is.
enum ConnectionPhase: UInt8 {
  case handshake
  case transmission
}

/// What keeps a connection from taking in its next request.
enum ConnectionBlock: UInt8 {
  case none
  /// Its own limits: goes on when replies of its own have left.
  case ownLimit
  /// The target or the table of requests is full: goes on in the order of the queue of waiting connections.
  case resources
}

/// The state of one connection, owned by one worker's thread.
struct Connection: ~Copyable {
  /// The socket, owned; -1 for an unused entry.
  var descriptor: Int32 = -1
  /// Counts the entry's uses, so that an event for an earlier one is recognised.
  var generation: UInt32 = 0
  var phase = ConnectionPhase.handshake
  var session = NegotiatedSession()
  var style: ReplyStyle { session.style }

  // Receiving.
  var buffer = ReceiveBuffer()
  var quota = ReceiveQuota()
  /// The socket may have bytes: set by an event, cleared by a receive that got less than it asked for.
  var isReadable = false
  /// Times in a row that there was something without anybody having slept for it.
  var readyInARow = 0
  /// Is looked at directly: the event loop does not have it.
  var isPolled = false
  /// Looks in a row that found nothing.
  var looksInVain = 0
  /// An event said that the other side has closed: a short receive is then no sign that all was received.
  var peerClosed = false
  /// No more requests come: the client said so or closed its side.
  var inputEnded = false
  /// The buffer may hold a whole request that was not looked at yet.
  var hasUnparsed = false
  /// The write whose payload is being received straight into the target's memory, or -1.
  var payloadSlot: Int32 = -1
  var payloadReceived = 0
  /// The refused request whose payload is being dropped, or -1.
  var skipSlot: Int32 = -1
  var skipRemaining: UInt64 = 0

  // Sending.
  var replyHead: Int32 = -1
  var replyTail: Int32 = -1
  /// Bytes of the first reply that have left already.
  var replySent = 0
  /// Data of reads that wait to be sent, in bytes.
  var unsentBytes = 0
  /// The client has gone: replies are dropped.
  var outputBroken = false
  /// The socket took less than was offered.
  var isSendBlocked = false
  /// The event loop also watches for room to send.
  var watchesWritable = false

  // Bounds.
  /// Slots held.
  var inFlight = 0
  /// Payload bytes of requests not answered yet.
  var inFlightBytes = 0
  var blocked = ConnectionBlock.none
  /// In the queue of connections to be served.
  var isQueued = false
  /// In the queue of connections with something to send.
  var isFlushQueued = false
  /// When the connection last moved a byte, or its handshake began; nanoseconds of the monotonic clock.
  var lastProgress: UInt64 = 0

  // The handshake, and what of it has not been sent.
  var handshake: Handshake?
  var handshakeOutput: [UInt8] = []
  var handshakeSent = 0
  /// Close as soon as everything has been sent.
  var closesWhenSent = false
}

/// A queue of connection indices with room for each once.
struct IndexQueue: ~Copyable {
  private let storage: EntryTable<Int32>
  private let position = Cell((head: 0, count: 0))

  init(capacity: Int) {
    storage = EntryTable(count: max(capacity, 1)) { _ in -1 }
  }

  var count: Int {
    @inline(__always) get { position.pointee.count }
  }

  /// The front, or -1.
  var first: Int32 {
    @inline(__always) get { position.pointee.count > 0 ? storage[position.pointee.head].pointee : -1 }
  }

  @inline(__always)
  func append(_ index: Int32) {
    precondition(position.pointee.count < storage.count, "a connection queued twice")
    var tail = position.pointee.head + position.pointee.count
    if tail >= storage.count { tail -= storage.count }
    storage[tail].pointee = index
    position.pointee.count += 1
  }

  /// Takes the front; -1 when there is none.
  @inline(__always)
  func removeFirst() -> Int32 {
    guard position.pointee.count > 0 else { return -1 }
    let index = storage[position.pointee.head].pointee
    position.pointee.head += 1
    if position.pointee.head == storage.count { position.pointee.head = 0 }
    position.pointee.count -= 1
    return index
  }

  /// Takes one out wherever it is, keeping the order of the others.
  func remove(_ index: Int32) {
    for _ in 0..<position.pointee.count {
      let next = removeFirst()
      if next != index { append(next) }
    }
  }
}
