// SPDX-License-Identifier: Apache-2.0

internal import CXen
internal import Glibc

/// What the calling thread asks of the scheduler.
public enum ThreadScheduling {
  /// Whether the calling thread may be made patient: not if somebody chose a policy for it, for example with chrt(1).
  public static var canBePatient: Bool { sched_getscheduler(0) == SCHED_OTHER }

  /// When woken, a patient thread (SCHED_BATCH) takes an idle processor if there is one and else waits for its turn; another
  /// one mostly takes the processor from the thread that runs there, which may be the very one that woke it.
  ///
  /// Its share of the processor is the same. A refusal changes nothing.
  public static func setPatient(_ isPatient: Bool) { _ = cxen_set_batch(isPatient ? 1 : 0) }
}
