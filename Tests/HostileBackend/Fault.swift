// SPDX-License-Identifier: Apache-2.0
//
// What a backend can do wrong, as values: each names the point at which it acts, so that any two can be at work at
// once. Whether a fault must break the device or must not be noticed at all is the test's business.

/// Where in the backend's work a fault acts.
public enum Hook: String, Sendable, CaseIterable {
  /// When nodes are published, or at any time in xenstore.
  case store
  /// When a request has been taken.
  case request
  /// When a response is written.
  case response
  /// When responses are published: the ring's header.
  case header
  /// At granted pages.
  case grants
  /// At the event channel.
  case events
}

/// One kind of misbehaviour.
public enum Fault: Sendable, Hashable {
  /// An id that no request in flight has.
  public enum WrongID: Sendable, Hashable, CaseIterable {
    case beyondTheRing, neverUsed, highBitSet, earlierUse, allOnes
  }

  // MARK: Requests and responses

  /// Every nth request is never answered.
  case neverAnswer(every: Int)
  /// Answers wait until so many are there, and then come in reverse.
  case reverseAnswers(batch: Int)
  /// Each answer comes so much later.
  case answerLate(milliseconds: Int)
  case wrongID(WrongID)
  /// Each request is answered again, in the same batch or in the next.
  case answerTwice(sameBatch: Bool)
  /// A request that the frontend has not sent is answered.
  case answerTheFuture
  case operation(UInt8)
  /// Nothing is done, and this is the answer.
  case status(Int16)
  /// Requests for this operation (inside an indirect request, the inner one) get this status.
  case refuse(operation: UInt8, status: Int16)
  /// The nth request from the beginning fails, and no other.
  case failNth(Int)
  /// Indirect requests are refused.
  case refuseIndirect
  /// Indirect requests are answered as operation 6.
  case outerOperation
  /// What blkif.h does not define in a response is rubbish.
  case rubbishPadding
  /// Another thread changes responses for as long as they are in the ring.
  case flipResponses

  // MARK: The header

  /// The response producer lies by so much.
  case producer(add: UInt32)
  /// The request event says that no notification is wanted, ever.
  case suppressNotifications
  /// The request event says that every request is to be notified.
  case demandNotifications
  /// Request producer, both events and the rest of the header change all the time.
  case scribbleHeader
  /// Slots of requests in flight change all the time.
  case scribbleSlots

  // MARK: Grants

  /// Mappings outlive the request, and the connection.
  case keepMappings
  /// So many pages stay mapped at most; any of them may go at any time.
  case persistentLimit(Int)
  /// Everything that the frontend grants is mapped and written while it is not the backend's turn.
  case scribbleFreePages
  /// The rest of a read's page is filled.
  case writeOutsideSegments
  /// The pages of a write are changed while it is served and after.
  case changeWrites
  /// The pages of a read are changed after its answer.
  case changeReadsAfterAnswer
  /// The lists of segments are changed once they were read.
  case changeIndirectPages

  // MARK: Events

  /// Events come as fast as the channel takes them.
  case eventStorm
  /// No event ever comes.
  case noEvents
  /// The backend's end is closed.
  case closeChannel

  // MARK: xenstore

  /// A node has this value; nil removes it.
  case node(String, [UInt8]?)
  /// The backend begins in another state than InitWait.
  case startAt(UInt8)
  /// It goes to this state when it should connect.
  case refuseToConnect(UInt8)
  /// It sees the frontend's Closing and Closed only when that is at Initialised, and then goes to this state, once.
  case followLate(UInt8)
  /// The backend stays in a state and never leaves it.
  case stuck(UInt8)
  /// The state goes through these, one each time that the backend looks.
  case bounce([UInt8])
  /// The state is written again as fast as xenstore takes it.
  case watchStorm
  /// The directory goes away.
  case vanish
  /// The frontend may not read the directory any more.
  case denyReading
  /// The size changes all the time.
  case resizeStorm

  /// Where it acts.
  public var hook: Hook {
    switch self {
    case .neverAnswer, .reverseAnswers, .answerLate, .refuse, .refuseIndirect, .failNth: .request
    case .wrongID, .answerTwice, .answerTheFuture, .operation, .status, .outerOperation, .rubbishPadding,
      .flipResponses:
      .response
    case .producer, .suppressNotifications, .demandNotifications, .scribbleHeader, .scribbleSlots: .header
    case .keepMappings, .persistentLimit, .scribbleFreePages, .writeOutsideSegments, .changeWrites,
      .changeReadsAfterAnswer,
      .changeIndirectPages:
      .grants
    case .eventStorm, .noEvents, .closeChannel: .events
    case .node, .startAt, .refuseToConnect, .followLate, .stuck, .bounce, .watchStorm, .vanish, .denyReading,
      .resizeStorm:
      .store
    }
  }

  /// Whether it has something to do while nothing else happens.
  var isRestless: Bool {
    switch self {
    case .scribbleHeader, .scribbleSlots, .scribbleFreePages, .eventStorm, .watchStorm, .resizeStorm,
      .answerLate, .bounce, .suppressNotifications, .changeReadsAfterAnswer:
      true
    default: false
    }
  }
}

/// Faults and when they begin.
public struct Plan: Sendable, CustomStringConvertible {
  /// All at work at once.
  public var faults: [Fault]
  /// Requests that are served properly first; faults of `Hook.store` that concern nodes act from the beginning.
  public var after: Int

  /// Makes one.
  public init(_ faults: [Fault] = [], after: Int = 0) {
    self.faults = faults
    self.after = after
  }

  /// For people.
  public var description: String { "\(faults) after \(after) requests" }
}
