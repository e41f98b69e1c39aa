#!/usr/bin/env python3
"""The loads iperf3 does not have, and the tables, of scripts/bench. Standard library only."""

import json
import os
import platform
import selectors
import socket
import statistics
import struct
import sys
import time

# The candidate every other one is set against, where it was measured.
BASELINES = ["kernel forwarding", "wireguard-go + kernel"]


# --- loads ---------------------------------------------------------------------------


def connect(host, port):
    connection = socket.create_connection((host, port), timeout=10)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def round_trip(host, port, seconds):
    """One byte there and back on one connection: prints p50 and p99 in microseconds."""
    connection = connect(host, int(port))
    samples = []
    warm_up = time.monotonic() + 0.3
    end = warm_up + float(seconds)
    while (now := time.monotonic()) < end:
        sent = time.perf_counter_ns()
        connection.sendall(b"x")
        if not connection.recv(1):
            sys.exit("the echo service hung up")
        if now >= warm_up:
            samples.append((time.perf_counter_ns() - sent) / 1000)
    samples.sort()
    print(f"{samples[len(samples) // 2]:.1f} {samples[len(samples) * 99 // 100]:.1f}")


def connections(host, port, seconds, concurrency=16):
    """Connect, one byte there and back, close, 16 at a time: prints connections a second.

    The close is a reset, as load generators do it, so that no port waits.
    """
    address = (host, int(port))
    selector = selectors.DefaultSelector()
    linger = struct.pack("ii", 1, 0)

    def start():
        connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        connection.setblocking(False)
        connection.connect_ex(address)
        selector.register(connection, selectors.EVENT_WRITE)

    for _ in range(concurrency):
        start()
    begin = time.monotonic()
    end = begin + float(seconds)
    done = failed = 0
    while time.monotonic() < end:
        events = selector.select(timeout=5)
        if not events:
            sys.exit("no connection made progress for 5 s")
        for key, ready in events:
            connection = key.fileobj
            try:
                if ready & selectors.EVENT_WRITE:
                    connection.send(b"x")
                    selector.modify(connection, selectors.EVENT_READ)
                    continue
                if connection.recv(1):
                    done += 1
                else:
                    failed += 1
            except OSError:
                failed += 1
            selector.unregister(connection)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            connection.close()
            start()
    elapsed = time.monotonic() - begin
    if failed > done // 100:
        sys.exit(f"{failed} connections failed, {done} did not")
    print(f"{done / elapsed:.0f}")


def iperf(path, before, after, ticks_per_second):
    """Reads an iperf3 result: prints Gbit/s received, and CPU seconds per GB or -."""
    with open(path, encoding="utf-8") as file:
        result = json.load(file)["end"]
    received = result["sum_received"]
    # The seconds iperf3 omits at the start carry bytes the gateway paid for as well.
    omitted = 1 + received["seconds"]
    gigabytes = received["bits_per_second"] / 8 * omitted / 1e9
    cpu = "-"
    if before and after:
        cpu = f"{(int(after) - int(before)) / int(ticks_per_second) / gigabytes:.3f}"
    print(f"{received['bits_per_second'] / 1e9:.3f} {cpu}")


# --- report --------------------------------------------------------------------------


def machine(*versions):
    """Prints a line for each thing a reader must know to compare figures."""
    model = "unknown processor"
    with open("/proc/cpuinfo", encoding="utf-8") as cpuinfo:
        for line in cpuinfo:
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    print(f"{os.cpu_count()} cores, {model}, Linux {platform.release()}")
    for version in versions:
        print(version.strip())


def read_figures(path):
    """{(row, unit): {candidate: [value of each run]}}, rows in the order of measuring."""
    figures = {}
    with open(path, encoding="utf-8") as file:
        for line in file:
            _, row, unit, candidate, value = line.rstrip("\n").split("\t")
            figures.setdefault((row, unit), {}).setdefault(candidate, []).append(float(value))
    order = list(dict.fromkeys(row for row, _ in figures))
    return dict(sorted(figures.items(), key=lambda item: order.index(item[0][0])))


def comparison(unit, values):
    """How portcullis stands against the baseline of its row, in words."""
    baseline = next((name for name in BASELINES if name in values), None)
    if baseline is None or "portcullis" not in values:
        return None, ""
    ours = statistics.median(values["portcullis"])
    theirs = statistics.median(values[baseline])
    if unit.endswith(" us"):
        return ours - theirs, f"{ours - theirs:+.1f} us"
    if theirs == 0:
        return None, ""
    return ours / theirs, f"{ours / theirs:.2f} x"


def shown(value):
    """Three significant digits, and whole numbers from a hundred on."""
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"


def table(figures_path, machine_path):
    figures = read_figures(figures_path)
    candidates = []
    for values in figures.values():
        candidates += [name for name in values if name not in candidates]
    candidates.sort(key=lambda name: (name == "portcullis", name))
    runs = max(len(values) for row in figures.values() for values in row.values())

    rows = [["", "unit", *candidates, "portcullis to other"]]
    previous = None
    for (row, unit), values in figures.items():
        cells = [shown(statistics.median(values[c])) if c in values else "-" for c in candidates]
        rows.append([row if row != previous else "", unit, *cells, comparison(unit, values)[1]])
        previous = row
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]

    with open(machine_path, encoding="utf-8") as file:
        print(file.read(), end="")
    print(f"Medians of {runs} alternated runs. Everything shares these cores: clients, gateway and servers.")
    print("Round trips and short connections are driven from Python, whose cost is in every column.\n")
    for number, row in enumerate(rows):
        left = [row[0].ljust(widths[0]), row[1].ljust(widths[1])]
        print("  ".join(left + [cell.rjust(width) for cell, width in zip(row[2:], widths[2:])]).rstrip())
        if number == 0:
            print("-" * (sum(widths) + 2 * len(widths) - 2))


def report_json(figures_path, machine_path):
    with open(machine_path, encoding="utf-8") as file:
        lines = file.read().splitlines()
    rows = []
    for (row, unit), values in read_figures(figures_path).items():
        ratio, _ = comparison(unit, values)
        rows.append(
            {
                "row": row,
                "unit": unit,
                "median": {name: statistics.median(runs) for name, runs in values.items()},
                "runs": values,
                "difference" if unit.endswith(" us") else "ratio": ratio,
            }
        )
    json.dump({"machine": lines, "rows": rows}, sys.stdout, indent=2)
    print()


COMMANDS = {
    "round-trip": round_trip,
    "connections": connections,
    "iperf": iperf,
    "machine": machine,
    "table": table,
    "json": report_json,
}

if __name__ == "__main__":
    COMMANDS[sys.argv[1]](*sys.argv[2:])
