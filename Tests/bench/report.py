# SPDX-License-Identifier: Apache-2.0
"""What the samples say: medians, ratios to the best peer round by round, goals, a table and a picture."""

from statistics import median
from xml.sax.saxutils import escape


def values(samples, workload, server, key):
    return [s[key] for s in samples if s["workload"] == workload and s["server"] == server and key in s]


def paired(samples, workload, ours, peer, key):
    """Ours divided by the peer's, round by round, so that what slows a whole round down does not count."""
    rounds = {}
    for s in samples:
        if s["workload"] == workload and key in s and s["server"] in (ours, peer):
            rounds.setdefault(s["round"], {})[s["server"]] = s[key]
    ratios = [r[ours] / r[peer] for r in rounds.values() if len(r) == 2 and r[peer] > 0]
    return median(ratios) if ratios else None


def compare(samples, workloads, servers):
    """One entry for each goal: workload, which of our servers, against whom, ratio, goal, met."""
    results = []
    for workload in workloads:
        for ours in (s for s in servers if s.ours and not s.twin):
            # A file is held against files; memory against whatever is fastest.
            others = [s for s in servers if not s.ours and not s.is_bare]
            peers = [s for s in others if ours.kind == "memory" or s.kind == ours.kind]
            movers = [s for s in servers if s.is_bare and s.kind == ours.kind]
            for key, goal, better in (("value", workload.goal, max), ("cpu_per_gib", workload.cpu_goal, min)):
                if goal is None or not values(samples, workload.name, ours.name, key):
                    continue
                known = [p for p in peers if values(samples, workload.name, p.name, key)]
                if not known:
                    continue
                best = better(known, key=lambda p: median(values(samples, workload.name, p.name, key)))
                ratio = paired(samples, workload.name, ours.name, best.name, key)
                if ratio is None:
                    continue
                # What a server that only moves bytes reaches against that peer.
                theirs = [paired(samples, workload.name, b.name, best.name, key) for b in movers]
                moving = better((ratio for ratio in theirs if ratio), default=None)
                results.append({
                    "bare": moving and round(moving, 3), "workload": workload.name, "server": ours.name, "metric": key, "best_peer": best.name,
                    "ratio": round(ratio, 3), "goal": goal, "met": ratio >= goal if key == "value" else ratio <= goal,
                })
    return results


def twins(samples, workloads, servers):
    """Our servers beside their twins: (workload, ours, twin, what, ratio), with no goal."""
    results = []
    for workload in workloads:
        for ours in (s for s in servers if s.twin):
            for key, what in (("value", "throughput"), ("cpu_per_gib", "CPU per GiB")):
                ratio = paired(samples, workload.name, ours.name, ours.twin, key)
                if ratio is not None:
                    results.append((workload.name, ours.name, ours.twin, what, round(ratio, 3)))
    return results


def number(value):
    if value is None:
        return "-"
    if value >= 100_000:
        return f"{value / 1000:.0f}k"
    if value >= 10_000:
        return f"{value / 1000:.1f}k"
    return f"{value:.0f}" if value >= 100 else f"{value:.2f}"


def table(samples, workloads, servers, results):
    """The lines to print."""
    head = ["workload", "unit"] + [s.name for s in servers]
    rows = []
    for w in workloads:
        for key, unit in (("value", w.unit), ("p50_us", "p50 µs"), ("cpu_per_gib", "CPU s/GiB")):
            if key == "p50_us" and "-d1-" not in w.name:
                continue
            cells = [values(samples, w.name, s.name, key) for s in servers]
            if any(cells):
                name = w.name if key == "value" else ""
                rows.append([name, unit] + [number(median(c)) if c else "-" for c in cells])
    widths = [max(len(r[n]) for r in [head] + rows) for n in range(len(head))]
    lines = ["  ".join(c.ljust(w) if n < 2 else c.rjust(w) for n, (c, w) in enumerate(zip(r, widths))) for r in [head] + rows]
    if results:
        lines += ["", "against the best peer of the same run (median of the rounds' ratios):"]
        for r in results:
            what = "throughput" if r["metric"] == "value" else "CPU per GiB"
            sign = "≥" if r["metric"] == "value" else "≤"
            bare = f", a server that only moves bytes {r['bare']:.2f}×" if r["bare"] else ""
            lines.append(
                f"  {'met   ' if r['met'] else 'MISSED'}  {r['workload']:<16} {r['server']:<11} {what:<12}"
                f"{r['ratio']:>6.2f}×  goal {sign} {r['goal']}×  (best: {r['best_peer']}{bare})")
        lines.append(f"{sum(r['met'] for r in results)} of {len(results)} goals met")
    pairs = twins(samples, workloads, servers)
    if pairs:
        lines += ["", "the same block layer, through NBD, a ring and grants, and through NBD alone:"]
        lines += [f"  {w:<16} {ours} / {twin} {what:<12}{ratio:>6.2f}×" for w, ours, twin, what, ratio in pairs]
    return lines


def picture(results, title):
    """An SVG: a bar for each ratio of throughput, a tick for its goal, a line at 1."""
    bars = [r for r in results if r["metric"] == "value"]
    left, width, step, top = 250, 520, 22, 56
    height = top + step * len(bars) + 40
    longest = max([2.5] + [r["ratio"] for r in bars])
    x = lambda ratio: left + width * ratio / longest
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 70}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="12" y="22" font-size="15">{escape(title)}</text>',
        '<text x="12" y="40" fill="#555">throughput divided by the best peer of the same run; the tick is the goal</text>',
    ]
    for n, r in enumerate(bars):
        y = top + n * step
        colour = "#2f6fb0" if r["server"] == "xbd-memory" else "#6aa84f"
        out += [
            f'<text x="{left - 8}" y="{y + 13}" text-anchor="end">{escape(r["workload"])} '
            f'({escape(r["server"].removeprefix("xbd-"))})</text>',
            f'<rect x="{left}" y="{y}" width="{x(r["ratio"]) - left:.1f}" height="{step - 6}" fill="{colour}"/>',
            f'<line x1="{x(r["goal"]):.1f}" x2="{x(r["goal"]):.1f}" y1="{y - 2}" y2="{y + step - 4}" '
            'stroke="#c0392b" stroke-width="2"/>',
            f'<text x="{x(r["ratio"]) + 5:.1f}" y="{y + 13}">{r["ratio"]:.2f}×</text>',
        ]
    out += [
        f'<line x1="{x(1):.1f}" x2="{x(1):.1f}" y1="{top - 6}" y2="{height - 30}" stroke="#333" stroke-dasharray="3 3"/>',
        f'<text x="{x(1):.1f}" y="{height - 14}" text-anchor="middle">1× the best peer</text>',
        "</svg>",
    ]
    return "\n".join(out) + "\n"
