// SPDX-License-Identifier: Apache-2.0

import Blkif
import CXen
import Testing

@Suite struct ProtocolTests {
  @Test func everyStatusHasAMeaningAndOnlyZeroIsSuccess() {
    for wire in Int16.min...Int16.max {
      let expected: ResponseStatus =
        switch Int32(wire) {
        case BLKIF_RSP_OKAY: .okay
        case BLKIF_RSP_EOPNOTSUPP: .notSupported
        default: .error
        }
      #expect(ResponseStatus(wire: wire) == expected)
    }
  }

  @Test(arguments: [ResponseStatus.okay, .error, .notSupported])
  func aStatusSurvivesTheRing(status: ResponseStatus) {
    #expect(ResponseStatus(wire: status.wire) == status)
  }

  @Test func operationsHaveBlkifHsNumbers() {
    #expect(Int32(BlockOperation.read.rawValue) == BLKIF_OP_READ)
    #expect(Int32(BlockOperation.write.rawValue) == BLKIF_OP_WRITE)
    #expect(Int32(BlockOperation.writeBarrier.rawValue) == BLKIF_OP_WRITE_BARRIER)
    #expect(Int32(BlockOperation.flush.rawValue) == BLKIF_OP_FLUSH_DISKCACHE)
    #expect(Int32(BlockOperation.discard.rawValue) == BLKIF_OP_DISCARD)
    #expect(Int32(BlockOperation.indirect.rawValue) == BLKIF_OP_INDIRECT)
    #expect(BlockOperation(rawValue: 4) == nil)
    #expect(BlockOperation(rawValue: 7) == nil)
  }

  @Test(arguments: [(ABI.x86_64, "x86_64-abi"), (.x86_32, "x86_32-abi"), (.arm, "arm-abi")])
  func anABIIsNamedAsTheProtocolNodeNamesIt(abi: ABI, name: String) {
    #expect(abi.rawValue == name)
    #expect(ABI(rawValue: name) == abi)
  }

  @Test func aViolationSaysTheNumbers() {
    let description = RingViolation.tooManyResponses(claimed: 40, outstanding: 3).description
    #expect(description.contains("40") && description.contains("3"))
  }
}
