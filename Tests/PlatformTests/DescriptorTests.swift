// SPDX-License-Identifier: Apache-2.0

import CXen
import Glibc
import Platform
import SystemPackage
import Testing

// Serialised: whether a number is open can only be asked while nobody else opens descriptors of this suite.
@Suite(.serialized) struct OwnedDescriptorTests {
  /// A pipe shows the closing of its writer from the other side, whatever number is given out again meanwhile.
  @Test func aDescriptorIsClosedWithItsOwner() throws {
    var ends: [Int32] = [-1, -1]
    try retrying { cxen_pipe2(&ends, cxen_O_CLOEXEC | cxen_O_NONBLOCK) }
    let reader = OwnedDescriptor(ends[0])
    do {
      let writer = OwnedDescriptor(ends[1])
      #expect(!reachedEnd(reader.raw))
      #expect(isOpen(writer.raw))
    }
    #expect(comesToEnd(reader.raw))
  }

  @Test func aReleasedDescriptorStaysOpen() throws {
    var ends: [Int32] = [-1, -1]
    try retrying { cxen_pipe2(&ends, cxen_O_CLOEXEC | cxen_O_NONBLOCK) }
    let reader = OwnedDescriptor(ends[0])
    let number = OwnedDescriptor(ends[1]).release()
    #expect(number == ends[1])
    #expect(!reachedEnd(reader.raw))
    close(number)
    #expect(comesToEnd(reader.raw))
  }

  @Test func aDuplicateOutlivesItsOriginalAndIsCloseOnExec() throws {
    var ends: [Int32] = [-1, -1]
    try retrying { cxen_pipe2(&ends, cxen_O_NONBLOCK) }
    let reader = OwnedDescriptor(ends[0])
    var twin = try OwnedDescriptor(ends[1]).duplicate()
    #expect(!reachedEnd(reader.raw))
    #expect(fcntl(twin.raw, F_GETFD) & FD_CLOEXEC != 0)
    twin = OwnedDescriptor(try retrying { cxen_memfd_create("other", 0) })
    #expect(comesToEnd(reader.raw))
    #expect(isOpen(twin.raw))
  }

  @Test func aNonBlockingReadReturnsAtOnce() throws {
    var ends: [Int32] = [-1, -1]
    try retrying { cxen_pipe2(&ends, cxen_O_CLOEXEC) }
    let reader = OwnedDescriptor(ends[0])
    let writer = OwnedDescriptor(ends[1])
    try reader.setNonBlocking()
    var byte: UInt8 = 0
    let result = read(reader.raw, &byte, 1)
    #expect(result == -1)
    #expect(Errno.current == .wouldBlock)
    #expect(isOpen(writer.raw))
  }

  @Test func aDescriptorThatIsNotOpenCannotBeDuplicated() {
    #expect(throws: Errno.badFileDescriptor) {
      let none = OwnedDescriptor(-1)
      _ = try none.duplicate()
    }
  }

  /// A child that another test begins at this moment has the writer until it is another program.
  private func comesToEnd(_ reader: Int32) -> Bool {
    var entry = pollfd(fd: reader, events: 0, revents: 0)
    return poll(&entry, 1, 10_000) == 1 && reachedEnd(reader)
  }

  private func reachedEnd(_ reader: Int32) -> Bool {
    var byte: UInt8 = 0
    return read(reader, &byte, 1) == 0
  }
}

@Suite struct RetryingTests {
  @Test func anInterruptedCallIsMadeAgain() throws {
    var calls = 0
    let value = try retrying { () -> Int32 in
      calls += 1
      if calls < 4 {
        errno = EINTR
        return -1
      }
      return 42
    }
    #expect(value == 42)
    #expect(calls == 4)
  }

  @Test func anotherErrorIsThrownAtOnce() {
    var calls = 0
    #expect(throws: Errno.ioError) {
      try retrying { () -> Int in
        calls += 1
        errno = EIO
        return -1
      }
    }
    #expect(calls == 1)
  }
}

@Suite struct MappedRegionTests {
  @Test(arguments: [(1, 4096), (4096, 4096), (4097, 8192), (1 << 20, 1 << 20)])
  func anAnonymousRegionIsZeroWritableAndWholePages(asked: Int, given: Int) throws {
    let region = try MappedRegion(anonymous: asked)
    #expect(region.byteCount == given)
    #expect(UInt(bitPattern: region.baseAddress) % 4096 == 0)
    let bytes = UnsafeMutableRawBufferPointer(start: region.baseAddress, count: region.byteCount)
    #expect(bytes.allSatisfy { $0 == 0 })
    bytes[0] = 1
    bytes[given - 1] = 2
    #expect(bytes[0] == 1 && bytes[given - 1] == 2)
  }

  @Test func twoSharedMappingsOfAFileShowOneMemory() throws {
    let file = OwnedDescriptor(try retrying { cxen_memfd_create("shared", 0) })
    try retrying { ftruncate(file.raw, 8192) }
    let whole = try MappedRegion(sharing: file.raw, byteCount: 8192)
    let second = try MappedRegion(sharing: file.raw, offset: 4096, byteCount: 4096, writable: false)
    whole.baseAddress.storeBytes(of: 0xDEAD_BEEF, toByteOffset: 4096, as: UInt32.self)
    #expect(second.baseAddress.load(as: UInt32.self) == 0xDEAD_BEEF)
  }

  @Test func aRegionIsUnmappedWithItsOwner() throws {
    // Far larger than anything else that is mapped at random, so that the place is free again afterwards.
    let address: UnsafeMutableRawPointer
    do {
      let region = try MappedRegion(reserving: 1 << 40)
      address = region.baseAddress
      #expect(isMapped(address))
    }
    #expect(!isMapped(address))
  }

  @Test func aMappingThatCannotBeThrows() throws {
    #expect(throws: Errno.badFileDescriptor) { _ = try MappedRegion(sharing: -1, byteCount: 4096) }
    #expect(throws: Errno.noMemory) { _ = try MappedRegion(reserving: Int.max >> 1) }
  }

  @Test func aReadOnlyMappingCannotBeWritten() async {
    await #expect(processExitsWith: .failure) {
      let file = OwnedDescriptor(cxen_memfd_create("sealed", 0))
      ftruncate(file.raw, 4096)
      let region = try MappedRegion(sharing: file.raw, byteCount: 4096, writable: false)
      region.baseAddress.storeBytes(of: 1, as: UInt8.self)
    }
  }

  /// Whether anything is mapped at an address: msync says ENOMEM where nothing is.
  private func isMapped(_ address: UnsafeMutableRawPointer) -> Bool { msync(address, 4096, MS_ASYNC) == 0 }
}
