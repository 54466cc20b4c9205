// SPDX-License-Identifier: Apache-2.0
//
// The backend's half of the xenbus handshake as a pure function of both ends' states (xenbus.h; blkif.h, "STATE
// DIAGRAMS"; Linux xen-blkback/xenbus.c: frontend_changed; QEMU: xen_device_frontend_changed).
//
//   front 1 ─► 2 InitWait (features)      front 3, 4 ─► 4 Connected (ring, sizes)
//   front 5 ─► 5 Closing                  front 6, gone ─► 6 Closed, and the end when it is offline

internal import Blkif
internal import Xen

/// What a backend sees of its frontend's `state` node.
enum FrontendState: Equatable {
  /// There is no such node.
  case missing
  /// A state.
  case state(XenbusState)
  /// Something that is none; as it was written.
  case garbage(String)

  init(node: [UInt8]?) {
    guard let node else {
      self = .missing
      return
    }
    if node.count == 1, node[0] >= UInt8(ascii: "0"),
      let state = XenbusState(rawValue: node[0] - UInt8(ascii: "0"))
    {
      self = .state(state)
    } else {
      self = .garbage(ForeignText.printable(node, atMost: 32))
    }
  }
}

/// Where one device stands.
struct XenbusMachine: Equatable {
  /// What has to be done, in the order given.
  enum Action: Equatable {
    /// Let go of the rings, if there are any.
    case disconnect
    /// Publish what belongs to a state before a frontend is attached, and write that state.
    case offer(XenbusState)
    /// Read what the frontend has published, attach, publish the sizes and go to Connected; failing that, complain.
    case connect
    /// Attach, and publish nothing: the backend is at Connected already.
    case attach
    /// Write the state that the machine is in now.
    case announce
    /// Write the sentence to the device's error node and go to Closing.
    case complain(String)
    /// The device is over.
    case remove
  }

  /// Through which states it goes.
  let order: BackendConfiguration.StateOrder
  /// Whether a frontend may come back after Closed.
  let reconnects: Bool
  /// What this end's `state` node says.
  private(set) var own: XenbusState = .initialising
  private var hasOffered = false
  private var isAttached = false
  private var frontendWasSeen = false
  /// The ring that the frontend has published is that of a backend that died.
  ///
  /// It is not touched: which of its requests were answered only the dead one knew. Features are offered again, and a
  /// frontend that knows how to reconnect begins anew; one that does not is asked to close (`patienceOver`).
  private(set) var isAbandoned = false
  /// The device ends as soon as its frontend has closed: one that would begin again is not met any more.
  private var isEnding = false

  /// - Parameter own: where it begins.
  init(own: XenbusState = .initialising) {
    self.own = own
    order = .waits
    reconnects = true
  }

  /// A device whose nodes an earlier backend may have left behind.
  ///
  /// - Parameters:
  ///   - left: what our `state` node said before we looked after it.
  ///   - configuration: through which states it goes.
  init(takingOver left: FrontendState, _ configuration: BackendConfiguration = BackendConfiguration()) {
    order = configuration.stateOrder
    reconnects = configuration.reconnects
    switch left {
    case .state(.connected), .state(.closing): isAbandoned = true
    default: break
    }
  }

  /// The frontend's state was looked at, changed or not.
  ///
  /// - Parameter online: false once the toolstack wants the device gone after it is closed.
  mutating func frontend(_ frontend: FrontendState, online: Bool) -> [Action] {
    switch frontend {
    case .missing where !frontendWasSeen:
      // Not created yet.
      return online ? [] : close(online: online)
    case .missing:
      frontendWasSeen = false
      isAbandoned = false
      return close(online: online)
    case .garbage(let text):
      frontendWasSeen = true
      return reject("the frontend's state is \"\(text)\", which is no state")
    case .state(let state):
      frontendWasSeen = true
      return known(state, online: online)
    }
  }

  private mutating func known(_ frontend: XenbusState, online: Bool) -> [Action] {
    switch frontend {
    case .initialising where isEnding:
      return close(online: false)
    case .initialising:
      isAbandoned = false
      switch own {
      case .initWait: return []
      case .initialising where order != .waits: return offerAlone()
      case .connected where order == .connectsAtOnce && !isAttached: return []
      // The toolstack closes the device while nobody is on the other side.
      case .closing where !online: return close(online: false)
      case .closed where !online: return [.remove]
      default:
        own = .initWait
        return [.disconnect, .offer(.initWait)]
      }
    case .initialised where isAbandoned, .connected where isAbandoned:
      guard own == .initialising else { return [] }
      own = .initWait
      return [.offer(.initWait)]
    case .initialised, .connected:
      switch own {
      case .connected where order == .connectsAtOnce && !isAttached:
        isAttached = true
        return [.attach]
      case .connected, .closing: return []
      case .initialising where order == .connectsAtOnce:
        let offers = offerAlone()
        isAttached = true
        return offers + [.attach]
      case .initialising where order == .staysInitialising:
        return [.disconnect] + offerAlone() + [.connect]
      case .initialising:
        own = .initWait
        return [.disconnect, .offer(.initWait), .connect]
      default: return [.disconnect, .connect]
      }
    case .closing:
      if own == .closing || own == .closed { return [] }
      own = .closing
      return [.announce]
    case .closed:
      isAbandoned = false
      return close(online: online)
    case .unknown, .initWait, .reconfiguring, .reconfigured:
      return reject("the frontend is in state \(frontend), which no frontend has")
    }
  }

  /// What a backend does that does not wait at InitWait.
  private mutating func offerAlone() -> [Action] {
    if hasOffered { return [] }
    hasOffered = true
    guard order == .connectsAtOnce else { return [.offer(.initialising)] }
    own = .connected
    return [.offer(.initWait), .offer(.connected)]
  }

  private mutating func reject(_ sentence: String) -> [Action] {
    if own == .closing || own == .closed { return [] }
    own = .closing
    return [.complain(sentence)]
  }

  private mutating func close(online: Bool) -> [Action] {
    let was = own
    own = .closed
    isAttached = false
    let end: [Action] = online && reconnects && !isEnding ? [] : [.remove]
    return was == .closed ? end : [.disconnect, .announce] + end
  }

  /// A frontend had time to let go of a dead backend's ring.
  mutating func patienceOver() -> [Action] {
    guard isAbandoned, own == .initWait else { return [] }
    return reject(
      "the frontend goes on with the ring of a backend that has died; it has to close the device and begin again"
    )
  }

  /// What became of `.connect` or `.attach`.
  mutating func connected() { own = .connected }

  /// `.connect`, or something later, failed.
  mutating func failed() {
    own = .closing
    isAttached = false
  }

  /// The device is to end from here, once its frontend has followed.
  mutating func beginEnd() {
    failed()
    isEnding = true
  }

  /// The device is ended from here.
  mutating func end() -> [Action] { close(online: false) }

  /// The toolstack wrote our own state, or `online`, or removed the directory.
  ///
  /// - Parameters:
  ///   - node: what our `state` says now.
  ///   - frontend: what the frontend's says.
  ///   - isBare: nothing is there of what is offered at Initialising.
  mutating func toolstack(
    node: FrontendState, frontend: FrontendState, online: Bool, isBare: Bool = false
  ) -> [Action] {
    switch node {
    case .missing:
      own = .closed
      return [.disconnect, .remove]
    case .state(.initialising) where online && (own != .initialising || hasOffered && isBare):
      // It has made the device anew, as for a domain that was restored: nothing of what was offered is there any more.
      own = .initialising
      hasOffered = false
      isAttached = false
      return [.disconnect] + self.frontend(frontend, online: online)
    case .state(.closing) where own != .closing && own != .closed:
      own = .closing
      return frontend.isActive ? [] : close(online: online)
    default:
      guard !online else { return [] }
      if own == .closed { return [.remove] }
      return frontend.isActive ? [] : close(online: false)
    }
  }
}

extension FrontendState {
  /// Whether a frontend is there that will react to our closing.
  var isActive: Bool {
    switch self {
    case .state(.initialised), .state(.connected), .state(.closing): true
    default: false
    }
  }
}
