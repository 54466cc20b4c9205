// SPDX-License-Identifier: Apache-2.0

internal import CXen
internal import Glibc

/// What the calling thread asks of the scheduler (sched(7)).
public enum ThreadScheduling {
  /// The policy of this process's threads, as long as none of them has asked for another: read when the first one starts.
  private static let usual = sched_getscheduler(0)

  /// Ends, for a thread that begins, the patience of the thread that started it: policies are inherited.
  static func begin() {
    if usual == SCHED_OTHER && !canBePatient { setPatient(false) }
  }

  /// Whether the calling thread may be made patient: not if somebody chose a policy for it, for example with chrt(1).
  public static var canBePatient: Bool { sched_getscheduler(0) == SCHED_OTHER }

  /// When woken, a patient thread (SCHED_BATCH) takes an idle processor if there is one and else waits for its turn; another
  /// one mostly takes the processor from the thread that runs there, which may be the very one that woke it.
  ///
  /// Its share of the processor is the same. A refusal changes nothing.
  public static func setPatient(_ isPatient: Bool) { _ = cxen_set_batch(isPatient ? 1 : 0) }
}
