// SPDX-License-Identifier: Apache-2.0
//
// Everything that can be known of a device without connecting to it: every node of both directories with what it
// means, and what would be negotiated. For people who bring up a backend.

internal import Blkif
public import Xen

/// A device looked at from outside.
public struct DeviceProbe: Sendable {
  /// One node of a directory.
  public struct Node: Sendable, Equatable {
    /// Its key.
    public let key: String
    /// Its value; bytes that are not text are replaced.
    ///
    /// Whoever shows it on a terminal has `ForeignText` go over it.
    public let value: String
    /// What the key means; nil for one that blkif.h does not know.
    public let meaning: String?
  }

  /// Where the device is.
  public let location: DeviceLocation
  /// The nodes of the frontend's directory, by key.
  public let frontendNodes: [Node]
  /// The nodes of the backend's directory, by key.
  public let backendNodes: [Node]
  /// What a ring would be made with; or what is wrong with the nodes that say so.
  public let transport: Result<TransportParameters, MalformedNode>
  /// What the device is; or what is wrong or missing, as it is before a backend has connected for the first time.
  public let features: Result<DeviceFeatures, MalformedNode>
  /// The kernel driver that has the device; nil when none does.
  public let kernelDriver: String?

  /// Looks at a device.
  ///
  /// - Parameters:
  ///   - name: a virtual device number (51728), a name (xvdb), or the path of a frontend directory.
  ///   - store: the domain's xenstore.
  ///   - options: what would be asked for.
  ///   - kernel: whom to ask for its driver; nil where this machine's kernel is not in that domain.
  public init(
    _ name: String, in store: any XenStore, options: FrontendOptions, kernel: KernelDriver? = KernelDriver()
  ) throws(XbdError) {
    location = try DeviceLocation(name, in: store)
    let frontend: Nodes
    let backend: Nodes
    do throws(XenError) {
      frontend = try location.nodes(of: location.frontend, in: store)
      backend = try location.nodes(of: location.backend, in: store)
    } catch {
      throw XbdError(error, during: "reading the nodes of \(location.frontend)")
    }
    frontendNodes = Self.explain(frontend)
    backendNodes = Self.explain(backend)
    transport = Result { () throws(MalformedNode) in
      TransportParameters(options, try TransportFeatures(backend))
    }
    features = Result { () throws(MalformedNode) in try DeviceFeatures(backend, unit: options.sectorsUnit) }
    kernelDriver = kernel?.owner(of: location.device)
  }

  private static func explain(_ nodes: Nodes) -> [Node] {
    nodes.sorted { $0.key < $1.key }.map { key, value in
      Node(key: key, value: String(decoding: value, as: UTF8.self), meaning: Key.meaning(of: key))
    }
  }
}
