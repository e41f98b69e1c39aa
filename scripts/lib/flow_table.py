#!/usr/bin/env python3
"""Prints a flow log as a table and checks that the named flows are in it.

    flow_table.py flows.jsonl 'NAME=KEY:VALUE[|VALUE],KEY:VALUE…' …

A value may end in * to match a beginning. Exits 1 when a named flow is missing.
"""

import json
import sys

COLUMNS = ["user", "protocol", "destination", "verdict", "rule", "bytes_up", "bytes_down", "duration_ms", "ended"]


def matches(record, condition):
    key, _, wanted = condition.partition(":")
    actual = str(record.get(key))
    return any(
        actual.startswith(value[:-1]) if value.endswith("*") else actual == value for value in wanted.split("|")
    )


def main():
    path, *wanted = sys.argv[1:]
    with open(path, encoding="utf-8") as log:
        records = [json.loads(line) for line in log]

    rows = [COLUMNS] + [[str(r.get(c) if r.get(c) is not None else "-") for c in COLUMNS] for r in records]
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    for row in rows:
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())

    missing = []
    for entry in wanted:
        name, _, conditions = entry.partition("=")
        if not any(all(matches(r, c) for c in conditions.split(",")) for r in records):
            missing.append(name)
    for record in records:
        if record.get("verdict") == "deny":
            print("\nThe denied one, whole:\n" + json.dumps(record))
            break
    for name in missing:
        print(f"not in the log: {name}")
    sys.exit(1 if missing else 0)


if __name__ == "__main__":
    main()
