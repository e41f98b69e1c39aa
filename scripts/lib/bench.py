#!/usr/bin/env python3
"""The report of scripts/bench: tables or JSON of its figures. Standard library only.

    bench.py table|json FIGURES MACHINE

FIGURES has a line for each figure: run, group, row, unit, column and value, with tabs
between them. MACHINE is text for the head.
"""

import fnmatch
import json
import statistics
import sys
from collections import namedtuple

OURS = "portcullis"
KERNEL = "kernel forwarding"

# What a group is about, what its figures are compared with, and how that is called.
Group = namedtuple("Group", "title reference")
GROUPS = {
    "tun": Group("TUN on-ramp, TCP", "kernel"),
    "offramps": Group("Off-ramps, TUN on-ramp, TCP", "direct"),
    "wireguard": Group("WireGuard on-ramp, TCP, client gotatun-cli (the peers leave forwarding to the kernel)", "peer"),
    "wireguard-batched": Group("WireGuard on-ramp, TCP, our batched client, which is not the limit", "peer"),
    "http": Group("HTTP through the TUN on-ramp, 16 at a time", "kernel"),
    "udp": Group("UDP through the TUN on-ramp, at most 1 % lost", "kernel"),
    "round-trip": Group("Round trip of one byte through the TUN on-ramp", "kernel"),
    "flows": Group("How cost grows with open flows, TUN on-ramp", "first"),
    "peers": Group("How cost grows with connected peers, WireGuard on-ramp, our batched client", "first"),
    "rules": Group("How cost grows with rules before the one that decides, TUN on-ramp", "first"),
    "memory": Group("At rest, TUN on-ramp", None),
    "reload": Group("Round trips while open flows are judged again (promised: 1 s, no stall over 5 ms), TUN on-ramp", "first"),
}
REFERENCE_NAMES = {"kernel": "to kernel", "direct": "to direct", "peer": "to best peer", "first": "last to first", None: ""}

# Floors and aims of a comparison, or of the figure itself where there is none.
Target = namedtuple("Target", "group row unit floor aim")
TARGETS = [
    Target("tun", "TCP, *", "Gbit/s", 0.70, 0.90),
    Target("offramps", "TCP, *", "Gbit/s", 1.0, 1.2),
    Target("wireguard", "TCP, *", "Gbit/s", 1.6, 2.0),
    Target("wireguard*", "TCP, *", "CPU s/GB", 0.25, 0.125),
    Target("http", "short connections", "conn/s", 0.35, 0.60),
    Target("http", "keep-alive requests", "requests/s", 0.45, 0.70),
    Target("round-trip", "idle", "p50 us", 60, 25),
    *(Target(group, "*", unit, 0.85, 0.95) for group in ("flows", "peers", "rules") for unit in ("Gbit/s", "conn/s")),
    Target("memory", "*", "RSS MB", 200, 80),
]

LESS_IS_BETTER = ("CPU s/GB", "p50 us", "p99 us", "max us", "longest ms", "RSS MB", "idle CPU %")

# One line of the report: the values are {column: [value of each run]}.
Row = namedtuple("Row", "group row unit values")


def read_figures(path):
    """Rows in the order of measuring; the units of one row stand together."""
    figures = {}
    with open(path, encoding="utf-8") as file:
        for line in file:
            _, group, row, unit, column, value = line.rstrip("\n").split("\t")
            figures.setdefault((group, row), {}).setdefault(unit, {}).setdefault(column, []).append(float(value))
    rows = [Row(group, row, unit, values) for (group, row), units in figures.items() for unit, values in units.items()]
    order = list(dict.fromkeys(row.group for row in rows))
    return sorted(rows, key=lambda row: order.index(row.group))


def medians(row):
    return {column: statistics.median(values) for column, values in row.values.items()}


def compare(row):
    """The comparison of a row: (with which column, ratio or difference), or None."""
    values = medians(row)
    reference = GROUPS[row.group].reference
    if reference == "first":
        columns = list(values)
        ours, other = columns[-1], columns[0]
    elif reference == "kernel":
        ours, other = OURS, KERNEL
    elif reference == "direct":
        ours, other = "kernel", "direct"
    elif reference == "peer":
        best = min if row.unit in LESS_IS_BETTER else max
        ours, other = OURS, best((name for name in values if name != OURS), key=values.get, default=None)
    else:
        return None
    if ours == other or ours not in values or other not in values:
        return None
    if row.unit.endswith(" us"):
        return other, values[ours] - values[other]
    return (other, values[ours] / values[other]) if values[other] else None


def target_of(row):
    for target in TARGETS:
        if fnmatch.fnmatchcase(row.group, target.group) and fnmatch.fnmatchcase(row.row, target.row):
            if row.unit == target.unit:
                return target
    return None


def verdict(row, target):
    """`aim reached`, `ok` or `below floor`; None when there is nothing to judge."""
    comparison = compare(row)
    if comparison is not None:
        value = comparison[1]
    elif GROUPS[row.group].reference is None:
        value = next(iter(medians(row).values()))
    else:
        return None
    sign = -1 if row.unit in LESS_IS_BETTER else 1
    if sign * value >= sign * target.aim:
        return "aim reached"
    return "ok" if sign * value >= sign * target.floor else "below floor"


# --- words -----------------------------------------------------------------------------


def shown(value):
    """Three significant digits, and whole numbers from a hundred on."""
    if value == 0:
        return "0"
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"


def shown_comparison(row):
    comparison = compare(row)
    if comparison is None:
        return ""
    return f"{comparison[1]:+.1f} us" if row.unit.endswith(" us") else f"{comparison[1]:.2f} x"


def shown_target(row):
    target = target_of(row)
    judged = target and verdict(row, target)
    if not judged:
        return ""
    if row.unit.endswith(" us"):
        bounds = f"floor {target.floor:+g} us, aim {target.aim:+g} us"
    elif GROUPS[row.group].reference is None:
        bounds = f"floor {target.floor:g}, aim {target.aim:g}"
    else:
        bounds = f"floor {target.floor:.3g} x, aim {target.aim:.3g} x"
    return f"{judged} ({bounds})"


def print_group(name, rows):
    columns = list(dict.fromkeys(column for row in rows for column in row.values))
    heads = [f"{int(column):,}" if column.isdigit() else column for column in columns]
    lines = [["", "unit", *heads, REFERENCE_NAMES[GROUPS[name].reference], "target"]]
    previous = None
    for row in rows:
        values = medians(row)
        cells = [shown(values[column]) if column in values else "-" for column in columns]
        lines.append([row.row if row.row != previous else "", row.unit, *cells, shown_comparison(row), shown_target(row)])
        previous = row.row
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    print(f"\n{GROUPS[name].title}")
    for number, line in enumerate(lines):
        cells = [cell.ljust(width) for cell, width in zip(line[:2], widths)]
        cells += [cell.rjust(width) for cell, width in zip(line[2:-1], widths[2:-1])]
        print("  ".join([*cells, line[-1]]).rstrip())
        if number == 0:
            print("-" * (sum(widths) + 2 * len(widths) - 2))


def table(rows, machine):
    print(machine, end="")
    runs = max(len(values) for row in rows for values in row.values.values())
    medians_of = f"Medians of {runs} alternated runs" if runs > 1 else "One run"
    print(f"{medians_of}. Clients, gateway and servers share these cores. CPU is that of the gateway's process.")
    for name in dict.fromkeys(row.group for row in rows):
        print_group(name, [row for row in rows if row.group == name])
    judged = [verdict(row, target) for row in rows if (target := target_of(row))]
    counts = ", ".join(f"{judged.count(word)} {word}" for word in ("aim reached", "ok", "below floor"))
    print(f"\nTargets: {counts}.")


def as_json(rows, machine):
    listed = []
    for row in rows:
        entry = {"group": row.group, "row": row.row, "unit": row.unit, "median": medians(row), "runs": row.values}
        comparison, target = compare(row), target_of(row)
        if comparison is not None:
            entry["compared_with"] = comparison[0]
            entry["difference" if row.unit.endswith(" us") else "ratio"] = comparison[1]
        if target is not None:
            entry["target"] = {"floor": target.floor, "aim": target.aim, "verdict": verdict(row, target)}
        listed.append(entry)
    json.dump({"machine": machine.splitlines(), "rows": listed}, sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    _, form, figures_path, machine_path = sys.argv
    with open(machine_path, encoding="utf-8") as machine_file:
        machine_text = machine_file.read()
    {"table": table, "json": as_json}[form](read_figures(figures_path), machine_text)
