#!/usr/bin/env python3
"""How long after a `kill -9` and restart a WireGuard client passes traffic again. Standard library only.

    restart.py --runs N --echo ADDRESS:PORT -- COMMAND...

Run where the client is, whose tunnel is up. COMMAND starts the gateway, which is started here. Datagrams go to the
echo without a pause; a run takes from the start of the new process to the first answer to something sent after it.
Prints a line for each run, then minimum, median, 95th percentile and maximum, in milliseconds. Fails when a run takes
longer than --limit.
"""

import argparse
import math
import signal
import socket
import subprocess
import sys
import threading
import time

PACE = 0.005
PATIENCE = 60.0


class Stream:
    """Datagrams with the time they were sent at, and the latest such time that was answered."""

    def __init__(self, address):
        host, _, port = address.rpartition(":")
        host = host.strip("[]")
        self.socket = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.connect((host, int(port)))
        self.answered = 0.0
        self.changed = threading.Condition()
        for work in (self.send, self.receive):
            threading.Thread(target=work, daemon=True).start()

    def send(self):
        while True:
            try:
                self.socket.send(repr(time.monotonic()).encode())
            except OSError:
                pass  # refused for what was sent before
            time.sleep(PACE)

    def receive(self):
        while True:
            try:
                sent = float(self.socket.recv(100))
            except OSError:
                continue
            with self.changed:
                self.answered = max(self.answered, sent)
                self.changed.notify_all()

    def wait_for_answer(self, since):
        """Until something sent after `since` is answered; the time it is now."""
        with self.changed:
            if not self.changed.wait_for(lambda: self.answered > since, PATIENCE):
                sys.exit(f"no traffic passes {PATIENCE:.0f} s after a start")
            return time.monotonic()


def percentile(values, part):
    return values[max(0, math.ceil(part * len(values)) - 1)]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--echo", required=True)
    parser.add_argument("--limit", type=float, default=2000, help="milliseconds a run may take")
    parser.add_argument("--settle", type=float, default=2.5, help="seconds of traffic before each kill")
    parser.add_argument("command", nargs="+")
    arguments = parser.parse_args()

    stream = Stream(arguments.echo)
    gateway = subprocess.Popen(arguments.command)
    took = []
    try:
        stream.wait_for_answer(0.0)
        for run in range(1, arguments.runs + 1):
            time.sleep(arguments.settle)
            gateway.send_signal(signal.SIGKILL)
            gateway.wait()
            started = time.monotonic()
            gateway = subprocess.Popen(arguments.command)
            took.append((stream.wait_for_answer(started) - started) * 1000)
            print(f"run {run}: {took[-1]:.0f} ms", flush=True)
    finally:
        gateway.terminate()
        gateway.wait()
    took.sort()
    figures = [took[0], percentile(took, 0.5), percentile(took, 0.95), took[-1]]
    print("min / median / p95 / max: " + " / ".join(f"{figure:.0f}" for figure in figures) + " ms")
    if took[-1] > arguments.limit:
        sys.exit(f"a run took longer than {arguments.limit:.0f} ms")


if __name__ == "__main__":
    main()
