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

let package = Package(
  name: "xbd-user",
  products: [
    .executable(name: "xbd-user", targets: ["xbd-user"]),
    .library(name: "XbdFront", targets: ["XbdFront"]),
    .library(name: "XbdBack", targets: ["XbdBack"]),
    .library(name: "XenLoopback", targets: ["XenLoopback"]),
    .library(name: "NBD", targets: ["NBD"]),
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
      swiftSettings: strict),
    .target(name: "Xen", dependencies: ["CXen", "Platform"], swiftSettings: strict),
    .target(name: "Blkif", dependencies: ["CXen", "Xen"], swiftSettings: strict),
    .target(
      name: "XbdFront",
      dependencies: ["Blkif", "Xen", "Platform", .product(name: "Logging", package: "swift-log")],
      swiftSettings: strict),
    .target(
      name: "XbdBack",
      dependencies: ["Blkif", "Xen", "Platform", .product(name: "Logging", package: "swift-log")],
      swiftSettings: strict),
    .target(
      name: "XenLoopback",
      dependencies: ["Xen", "Platform", "CXen", .product(name: "Logging", package: "swift-log")],
      swiftSettings: strict),
    .target(
      name: "NBD",
      dependencies: ["CXen", "Platform", .product(name: "Logging", package: "swift-log")],
      swiftSettings: strict),
    .executableTarget(
      name: "xbd-user",
      dependencies: [
        "NBD", "XbdFront", "XbdBack", "XenLoopback", "Xen", "Blkif", "Platform",
        .product(name: "ArgumentParser", package: "swift-argument-parser"),
        .product(name: "Logging", package: "swift-log"),
      ],
      swiftSettings: strict),

    // Xen's own ring.h macros given linkage, for differential tests only.
    .target(name: "CRingReference", dependencies: ["CXen"], path: "Tests/CRingReference"),
    .testTarget(
      name: "BlkifTests", dependencies: ["Blkif", "Xen", "CXen", "CRingReference"],
      swiftSettings: strict),
    .testTarget(
      name: "PlatformTests", dependencies: ["Platform", "CXen"], swiftSettings: strict),

    // Counts allocations of a thread, for tests of paths that must not allocate.
    .target(name: "CAllocationCounter", path: "Tests/CAllocationCounter"),
    .testTarget(
      name: "XbdFrontTests",
      dependencies: [
        "XbdFront", "Blkif", "Xen", "Platform", "CXen", "CAllocationCounter",
        .product(name: "Logging", package: "swift-log"),
        .product(name: "SystemPackage", package: "swift-system"),
      ],
      swiftSettings: strict),
  ],
  swiftLanguageModes: [.v6],
  cLanguageStandard: .gnu11
)
