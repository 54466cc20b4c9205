// swift-tools-version: 6.2
// SPDX-License-Identifier: Apache-2.0

import PackageDescription

/// What every Swift target is compiled with: the language's strict modes, and no warning let through.
let strict: [SwiftSetting] = [
  .treatAllWarnings(as: .error),
  .enableUpcomingFeature("ExistentialAny"),
  .enableUpcomingFeature("InternalImportsByDefault"),
  .enableUpcomingFeature("MemberImportVisibility"),
]

/// The modules that touch shared memory: each unsafe use is marked, and says why it is right (`scripts/lint`).
let strictlySafe = strict + [.strictMemorySafety()]

let package = Package(
  name: "xbd-user",
  products: [
    .executable(name: "xbd-user", targets: ["xbd-user"]),
    .library(name: "Xen", targets: ["Xen"]),
    .library(name: "XbdFront", targets: ["XbdFront"]),
    .library(name: "XbdBack", targets: ["XbdBack"]),
    .library(name: "XenLoopback", targets: ["XenLoopback"]),
    .library(name: "NBD", targets: ["NBD"]),
    // libxenloopback.so: preloaded into programs that are linked against libxen.
    .library(name: "xenloopback", type: .dynamic, targets: ["XenLoopbackDropIn"]),
  ],
  dependencies: [
    .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.2"),
    .package(url: "https://github.com/apple/swift-log", from: "1.16.2"),
    .package(url: "https://github.com/apple/swift-system", from: "1.8.1"),
  ],
  targets: [
    // libxen as the distribution ships it: pkg-config gives the flags, the linker the shared libraries.
    .systemLibrary(
      name: "CLibXen", path: "Sources/CXen/libxen",
      pkgConfig: "xengnttab xenevtchn xenstore", providers: [.apt(["libxen-dev"])]),
    // The only C: Xen's headers, their layout asserted, and the glibc calls Swift cannot see.
    .target(name: "CXen", dependencies: ["CLibXen"], exclude: ["libxen"]),

    // Files, sockets, threads, event loops: Linux as the modules above want to see it.
    .target(
      name: "Platform",
      dependencies: ["CXen", .product(name: "SystemPackage", package: "swift-system")],
      swiftSettings: strictlySafe),
    .target(
      name: "Xen",
      dependencies: ["CXen", "Platform", .product(name: "SystemPackage", package: "swift-system")],
      swiftSettings: strictlySafe),
    .target(name: "Blkif", dependencies: ["CXen", "Xen"], swiftSettings: strictlySafe),
    .target(
      name: "XbdFront",
      dependencies: [
        "Blkif", "Xen", "Platform", .product(name: "Logging", package: "swift-log"),
        .product(name: "SystemPackage", package: "swift-system"),
      ],
      swiftSettings: strictlySafe),
    .target(
      name: "XbdBack",
      dependencies: [
        "Blkif", "Xen", "Platform", "CXen", .product(name: "Logging", package: "swift-log"),
        .product(name: "SystemPackage", package: "swift-system"),
      ],
      swiftSettings: strictlySafe),
    .target(
      name: "XenLoopback",
      dependencies: [
        "Xen", "Platform", "CXen", .product(name: "SystemPackage", package: "swift-system"),
      ],
      swiftSettings: strictlySafe),
    // The C ABI of libxen on the loopback. It carries the Swift runtime and shows none of it, so that it can be
    // preloaded into any program, one with another Swift runtime included.
    .target(name: "CXenDropIn"),
    .target(
      name: "XenLoopbackDropIn",
      dependencies: [
        "XenLoopback", "Xen", "Platform", "CXen", "CXenDropIn",
        .product(name: "SystemPackage", package: "swift-system"),
      ],
      exclude: ["exports.map"], swiftSettings: strictlySafe,
      linkerSettings: [
        .unsafeFlags([
          "-use-ld=lld", "-static-stdlib", "-Xlinker", "--gc-sections", "-Xlinker",
          "--version-script=\(Context.packageDirectory)/Sources/XenLoopbackDropIn/exports.map",
        ])
      ]),
    .target(
      name: "NBD",
      dependencies: [
        "CXen", "Platform", .product(name: "Logging", package: "swift-log"),
        .product(name: "SystemPackage", package: "swift-system"),
      ],
      swiftSettings: strictlySafe),
    .executableTarget(
      name: "xbd-user",
      dependencies: [
        "NBD", "XbdFront", "XbdBack", "XenLoopback", "Xen", "Blkif", "Platform", "CXen",
        .product(name: "ArgumentParser", package: "swift-argument-parser"),
        .product(name: "Logging", package: "swift-log"),
      ],
      swiftSettings: strict),

    // What tests of several modules need: repeatable randomness, places in the file system.
    .target(
      name: "TestSupport", dependencies: [.product(name: "SystemPackage", package: "swift-system")],
      path: "Tests/TestSupport", swiftSettings: strict),
    // Xen's own ring.h macros given linkage, for differential tests only.
    .target(name: "CRingReference", dependencies: ["CXen"], path: "Tests/CRingReference"),
    .testTarget(
      name: "BlkifTests",
      dependencies: ["TestSupport", "Blkif", "Xen", "Platform", "CXen", "CRingReference"],
      swiftSettings: strict),
    // Counts allocations of a thread, for tests of paths that must not allocate.
    .target(name: "CAllocationCounter", path: "Tests/CAllocationCounter"),
    .testTarget(
      name: "PlatformTests",
      dependencies: [
        "TestSupport", "Platform", "CXen", .product(name: "SystemPackage", package: "swift-system"),
      ],
      swiftSettings: strict),
    // The seam's guarantees as checks that any Xen can be put through, and the other process for them.
    .target(
      name: "XenConformance",
      dependencies: [
        "Xen", "Platform", "CXen", .product(name: "SystemPackage", package: "swift-system"),
      ],
      path: "Tests/XenConformance", swiftSettings: strict),
    .executableTarget(
      name: "xen-party", dependencies: ["XenConformance", "XenLoopback", "Xen", "Platform"],
      path: "Tests/XenParty",
      swiftSettings: strict),
    .testTarget(
      name: "XenTests", dependencies: ["TestSupport", "Xen", "Platform"], swiftSettings: strict),
    .testTarget(
      name: "XenLoopbackTests",
      dependencies: [
        "TestSupport", "XenConformance", "xen-party", "XenLoopback", "Xen", "Platform", "CXen",
        .product(name: "SystemPackage", package: "swift-system"),
      ],
      swiftSettings: strict),
    // libxen's own clients with the drop-in preloaded. The library itself is only built with the tests: linking it
    // would put its flags on all of them.
    .executableTarget(name: "xen-walk", dependencies: ["CLibXen"], path: "Tests/XenWalk"),
    .testTarget(
      name: "XenDropInTests",
      dependencies: [
        "TestSupport", "XenConformance", "xen-party", "xen-walk", "XenLoopback", "Xen", "Platform", "CXen",
      ],
      swiftSettings: strict),
    .testTarget(
      name: "XbdBackTests",
      dependencies: [
        "TestSupport", "XbdBack", "Blkif", "Xen", "Platform", "CXen", "CAllocationCounter",
        .product(name: "Logging", package: "swift-log"),
      ],
      swiftSettings: strict),
    // A BlockTarget on memory, for the NBD tests and for measuring the NBD service alone.
    .target(
      name: "NBDTestSupport", dependencies: ["NBD", "CXen", "Platform"], path: "Tests/NBDTestSupport",
      swiftSettings: strict),
    .executableTarget(
      name: "nbd-bench-server", dependencies: ["NBD", "NBDTestSupport"], path: "Tests/NBDBenchServer",
      swiftSettings: strict),
    .testTarget(
      name: "NBDTests",
      dependencies: [
        "TestSupport", "NBD", "NBDTestSupport", "Platform", "CXen", "CAllocationCounter",
        .product(name: "SystemPackage", package: "swift-system"),
      ],
      swiftSettings: strict),
    // A backend on the loopback whose every misbehaviour is a value.
    .target(
      name: "HostileBackend",
      dependencies: [
        "TestSupport", "XenLoopback", "Xen", "Platform",
        .product(name: "SystemPackage", package: "swift-system"),
      ],
      path: "Tests/HostileBackend", swiftSettings: strict),
    .testTarget(
      name: "HostileTests",
      dependencies: [
        "TestSupport", "HostileBackend", "XbdFront", "NBD", "XenLoopback", "Blkif", "Xen", "Platform", "CXen",
        .product(name: "Logging", package: "swift-log"),
        .product(name: "SystemPackage", package: "swift-system"),
      ],
      swiftSettings: strict),
    .testTarget(
      name: "XbdFrontTests",
      dependencies: [
        "TestSupport", "XbdFront", "Blkif", "Xen", "Platform", "CXen", "CAllocationCounter",
        .product(name: "Logging", package: "swift-log"),
        .product(name: "SystemPackage", package: "swift-system"),
      ],
      swiftSettings: strict),
    // The frontend against every profile of the reference backend, on the loopback.
    .testTarget(
      name: "XbdProfileTests",
      dependencies: [
        "TestSupport", "XbdFront", "XbdBack", "XenLoopback", "Blkif", "Xen", "Platform",
        .product(name: "Logging", package: "swift-log"),
      ],
      swiftSettings: strict),
  ],
  swiftLanguageModes: [.v6],
  cLanguageStandard: .gnu11
)

// Fuzzing: `Tests/fuzz/run` says where libFuzzer is and builds in a directory of its own; nobody else sees this target.
if let libFuzzer = Context.environment["XBD_LIBFUZZER"] {
  for target in package.targets where target.swiftSettings != nil {
    target.swiftSettings?.append(.unsafeFlags(["-sanitize=fuzzer", "-enable-testing"]))
  }
  package.targets.append(
    .executableTarget(
      name: "xbd-fuzz",
      dependencies: [
        "NBD", "NBDTestSupport", "XbdFront", "XbdBack", "XenLoopback", "Xen", "Blkif", "Platform", "CXen",
        .product(name: "SystemPackage", package: "swift-system"),
      ],
      path: "Tests/fuzz", exclude: ["run", "corpus", "dictionaries"], swiftSettings: strict,
      linkerSettings: [.unsafeFlags([libFuzzer, "-lstdc++"])]))
}
