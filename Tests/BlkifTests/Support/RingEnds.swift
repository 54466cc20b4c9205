// SPDX-License-Identifier: Apache-2.0
//
// Both ends of a ring behind one interface each, in Swift and in Xen's C, so that one schedule drives them all.

import Blkif
import CRingReference
import Platform

/// A frontend's end.
protocol FrontEnd: AnyObject {
  var freeSlots: UInt32 { get }
  func enqueue(_ request: AnyRequest)
  func publish() -> Bool
  func availableResponses() throws -> UInt32
  func takeResponse() -> WireResponse
  /// Whether there is work: the opposite of having armed the notification.
  func finalCheck() -> Bool
}

/// A backend's end.
protocol BackEnd: AnyObject {
  func availableRequests() throws -> UInt32
  /// The slot's bytes.
  func takeRequest() -> [UInt8]
  func push(_ response: WireResponse)
  func publish() -> Bool
  func finalCheck() -> Bool
}

final class SwiftFront: FrontEnd {
  private var ring: FrontRing

  init(_ pages: UnsafeMutableRawPointer, pageCount: Int, abi: ABI, start: UInt32) {
    ring = FrontRing(pages: pages, pageCount: pageCount, abi: abi, startingAt: start)
  }
  var freeSlots: UInt32 { ring.freeSlots }
  func enqueue(_ request: AnyRequest) { request.write(to: ring.enqueue()) }
  func publish() -> Bool { ring.publish() == .required }
  func availableResponses() throws -> UInt32 { try ring.availableResponses() }
  func takeResponse() -> WireResponse { ring.takeResponse() }
  func finalCheck() -> Bool { !ring.armNotification() }
}

final class SwiftBack: BackEnd {
  private var ring: BackRing
  private let stride: Int

  init(_ pages: UnsafeMutableRawPointer, pageCount: Int, abi: ABI) throws {
    ring = try BackRing(pages: pages, pageCount: pageCount, abi: abi)
    stride = RingLayout(abi).stride
  }
  func availableRequests() throws -> UInt32 { try ring.availableRequests() }
  func takeRequest() -> [UInt8] {
    withUnsafeTemporaryAllocation(byteCount: 112, alignment: 16) { buffer in
      if let address = buffer.baseAddress { _ = ring.takeRequest(into: address) }
      return Array(buffer.prefix(stride))
    }
  }
  func push(_ response: WireResponse) {
    ring.push(id: response.id, operation: response.operation, status: response.status)
  }
  func publish() -> Bool { ring.publish() == .required }
  func finalCheck() -> Bool { !ring.armNotification() }
}

final class CFront: FrontEnd {
  private var ring = cring()

  init(_ pages: UnsafeMutableRawPointer, pageCount: Int, abi: ABI, start: UInt32) {
    cring_front_init(&ring, pages, pageCount * Page.size, start, abi == .x86_32)
  }
  var freeSlots: UInt32 { cring_free_requests(&ring) }
  func enqueue(_ request: AnyRequest) {
    request.write(toC: cring_get_request(&ring, ring.producer), x86_32: ring.x86_32)
    ring.producer &+= 1
  }
  func publish() -> Bool { cring_push_requests_and_check_notify(&ring) }
  func availableResponses() -> UInt32 { cring_unconsumed_responses(&ring) }
  func takeResponse() -> WireResponse {
    var id: UInt64 = 0
    var operation: UInt8 = 0
    var status: Int16 = 0
    cring_read_response(
      cring_get_response(&ring, ring.consumer), ring.x86_32, &id, &operation, &status)
    ring.consumer &+= 1
    return WireResponse(id: id, operation: operation, status: status)
  }
  func finalCheck() -> Bool { cring_final_check_for_responses(&ring) }
}

final class CBack: BackEnd {
  private var ring = cring()

  init(_ pages: UnsafeMutableRawPointer, pageCount: Int, abi: ABI, start: UInt32) {
    cring_back_attach(&ring, pages, pageCount * Page.size, start, abi == .x86_32)
  }
  func availableRequests() -> UInt32 { cring_unconsumed_requests(&ring) }
  func takeRequest() -> [UInt8] {
    let slot = UnsafeRawBufferPointer(
      start: cring_get_request(&ring, ring.consumer), count: cring_slot_size(ring.x86_32))
    ring.consumer &+= 1
    return Array(slot)
  }
  func push(_ response: WireResponse) {
    cring_write_response(
      cring_get_response(&ring, ring.producer), ring.x86_32, response.id, response.operation, response.status)
    ring.producer &+= 1
  }
  func publish() -> Bool { cring_push_responses_and_check_notify(&ring) }
  func finalCheck() -> Bool { cring_final_check_for_requests(&ring) }
}
