#!/usr/bin/env python3
"""Both ends of the traffic of scripts/chaos, each run inside a network namespace.

Every command prints one line of JSON when it is done; `serve` and `relay` print
`ready` and go on until they are ended. Standard library only.
"""

import argparse
import base64
import ctypes
import hashlib
import heapq
import json
import os
import random
import resource
import select
import signal
import socket
import struct
import sys
import threading
import time

CHUNK = 64 * 1024
# Longest time without a byte.
PATIENCE = 60


def address(text):
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


def family(host):
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def say(**figures):
    print(json.dumps(figures), flush=True)


def blocks(length):
    """`length` bytes that no compression, repetition or shift leaves the same."""
    noise = random.Random(length).randbytes(CHUNK)
    sent = 0
    while sent < length:
        block = (struct.pack(">Q", sent) + noise)[: min(CHUNK, length - sent)]
        sent += len(block)
        yield block


# --- the target ----------------------------------------------------------------------


def read_line(stream):
    line = b""
    while not line.endswith(b"\n"):
        byte = stream.recv(1)
        if not byte:
            return None
        line += byte
    return line.decode().split()


def answer(stream):
    """A line says what the client wants: upload, download, ping, or never an end."""
    digest = hashlib.sha256()
    try:
        stream.settimeout(PATIENCE * 5)
        request = read_line(stream)
        if request is None:
            return
        if request[0] == "upload":
            while block := stream.recv(CHUNK):
                digest.update(block)
            stream.sendall(digest.digest())
        elif request[0] == "download":
            for block in blocks(int(request[1])):
                digest.update(block)
                stream.sendall(block)
            stream.sendall(digest.digest())
        elif request[0] == "ping":
            while stream.recv(1):
                stream.sendall(b"p")
        elif request[0] == "endless":
            while True:
                stream.sendall(bytes(CHUNK))
        elif request[0] == "reset":
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    except OSError:
        pass
    finally:
        stream.close()


def serve(arguments):
    raise_descriptors()
    threading.stack_size(128 * 1024)
    # A process for each: thousands of connections of one must not slow the other down.
    for where in arguments.address[1:]:
        if os.fork() == 0:
            ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
            listen(where)
            signal.pause()
    listen(arguments.address[0])
    print("ready", flush=True)
    signal.pause()


def listen(where):
    listener = socket.socket(family(where[0]), socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(where)
    listener.listen(4096)
    threading.Thread(target=accept, args=(listener,), daemon=True).start()
    echo = socket.socket(family(where[0]), socket.SOCK_DGRAM)
    echo.bind(where)
    threading.Thread(target=echo_datagrams, args=(echo,), daemon=True).start()


def accept(listener):
    while True:
        stream, _ = listener.accept()
        threading.Thread(target=answer, args=(stream,), daemon=True).start()


def echo_datagrams(echo):
    while True:
        try:
            datagram, sender = echo.recvfrom(65_535)
            echo.sendto(datagram, sender)
        except OSError:
            pass


# --- clients -------------------------------------------------------------------------


def connect(where, patience=PATIENCE):
    stream = socket.create_connection(where, timeout=patience)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return stream


def transfer(arguments):
    """Up or down; every byte is compared by SHA-256, and an end before the last byte is one that lies."""
    began = time.monotonic()
    digest = hashlib.sha256()
    outcome = "whole"
    moved = 0
    try:
        stream = connect(arguments.to, arguments.patience)
        if arguments.direction == "up":
            stream.sendall(b"upload\n")
            for block in blocks(arguments.bytes):
                digest.update(block)
                stream.sendall(block)
                moved += len(block)
            stream.shutdown(socket.SHUT_WR)
            theirs = receive(stream, 32)
        else:
            stream.sendall(b"download %d\n" % arguments.bytes)
            while moved < arguments.bytes:
                block = stream.recv(min(CHUNK, arguments.bytes - moved))
                if not block:
                    break
                digest.update(block)
                moved += len(block)
            theirs = receive(stream, 32)
        if moved < arguments.bytes or len(theirs) < 32:
            outcome = "a clean end before the last byte"
        elif theirs != digest.digest():
            outcome = "bytes differ"
    except ConnectionResetError:
        outcome = "reset"
    except (TimeoutError, socket.timeout):
        outcome = "timeout"
    except OSError as error:
        outcome = str(error)
    say(outcome=outcome, bytes=moved, seconds=round(time.monotonic() - began, 3))


def receive(stream, length):
    got = b""
    while len(got) < length:
        block = stream.recv(length - len(got))
        if not block:
            break
        got += block
    return got


def connects(arguments):
    """New connections one after another, each with a question and an answer."""
    took, failed, last = [], 0, ""
    end = time.monotonic() + arguments.seconds
    while time.monotonic() < end:
        began = time.monotonic()
        try:
            stream = connect(arguments.to, arguments.patience)
            stream.sendall(b"ping\nx")
            if stream.recv(1) != b"p":
                raise ConnectionError("no answer")
            took.append(time.monotonic() - began)
            # The close is a reset, so that no port waits.
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            stream.close()
        except OSError as error:
            failed, last = failed + 1, str(error)
        time.sleep(max(0, arguments.pause - (time.monotonic() - began)))
    took.sort()
    at = lambda share: round(took[int(share * (len(took) - 1))] * 1000, 3) if took else None
    say(count=len(took), failed=failed, last=last, p50_ms=at(0.5), p99_ms=at(0.99), max_ms=at(1.0))


def stay(arguments):
    """One connection with a question every so often; tells the longest wait, and whether it lived."""
    longest, asked, outcome = 0.0, 0, "alive"
    end = time.monotonic() + arguments.seconds
    try:
        stream = connect(arguments.to, arguments.patience)
        stream.sendall(b"ping\n")
        while time.monotonic() < end:
            began = time.monotonic()
            stream.sendall(b"x")
            if stream.recv(1) != b"p":
                outcome = "closed"
                break
            longest = max(longest, time.monotonic() - began)
            asked += 1
            time.sleep(arguments.pause)
    except OSError as error:
        outcome = str(error)
    say(outcome=outcome, asked=asked, longest_ms=round(longest * 1000, 3))


def sit(arguments):
    """Connections that ask for data without an end and never read, until the process is ended."""
    raise_descriptors()
    held, refused = [], 0
    for index in range(arguments.flows):
        stream = socket.socket(family(arguments.to[0]), socket.SOCK_STREAM)
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stream.settimeout(5)
        try:
            stream.connect(arguments.to)
            stream.sendall(b"endless\n")
            held.append(stream)
        except OSError:
            refused += 1
            stream.close()
            if refused > 200:
                break
    say(open=len(held), refused=refused)
    signal.pause()


def keep(arguments):
    """Accepts connections and nothing more, or opens them: no thread wakes when they end, so only the gateway works."""
    raise_descriptors()
    held = []
    if arguments.flows:
        for _ in range(arguments.flows):
            held.append(connect(arguments.to))
        say(open=len(held))
        signal.pause()
    listener = socket.create_server(arguments.to, family=family(arguments.to[0]), backlog=4096)
    print("ready", flush=True)
    while True:
        held.append(listener.accept()[0])


def raise_descriptors():
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


# --- floods --------------------------------------------------------------------------


def paced(rate, seconds):
    """Counts upwards at `rate` a second, in bursts of a hundredth of a second."""
    began = time.monotonic()
    sent = 0
    while (elapsed := time.monotonic() - began) < seconds:
        due = int(elapsed * rate)
        while sent < due:
            yield sent
            sent += 1
        time.sleep(0.002)


def checksum(data):
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def syn(source, target, source_port, port):
    header = struct.pack(">HHIIBBHHH", source_port, port, random.getrandbits(32), 0, 0x50, 2, 65_535, 0, 0)
    pseudo = socket.inet_aton(source) + socket.inet_aton(target) + struct.pack(">BBH", 0, 6, len(header))
    return header[:16] + struct.pack(">H", checksum(pseudo + header)) + header[18:]


def syn_flood(arguments):
    """SYNs from ever new ports: what is answered nobody will acknowledge."""
    raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
    host, port = arguments.to
    ready = [syn(arguments.source, host, 1024 + number % 60_000, port) for number in range(60_000)]
    sent = 0
    for number in paced(arguments.rate, arguments.seconds):
        try:
            raw.sendto(ready[number % len(ready)], (host, 0))
            sent += 1
        except OSError:
            pass
    say(sent=sent, per_second=int(sent / arguments.seconds))


def udp_spray(arguments):
    """Datagrams to ever new ports from ever new ports."""
    host, first = arguments.to
    sockets = [socket.socket(family(host), socket.SOCK_DGRAM) for _ in range(64)]
    sent = 0
    for number in paced(arguments.rate, arguments.seconds):
        try:
            sockets[number % 64].sendto(b"spray", (host, first + number // 64 % (65_535 - first)))
            sent += 1
        except OSError:
            pass
    say(sent=sent, per_second=int(sent / arguments.seconds))


def initiation(server_key):
    """148 bytes whose first MAC is right and whose rest is noise (WireGuard paper, section 5.4.4)."""
    key = hashlib.blake2s(b"mac1----" + server_key).digest()
    body = b"\x01\0\0\0" + os.urandom(112)
    return body + hashlib.blake2s(body, key=key, digest_size=16).digest() + bytes(16)


def handshakes(arguments):
    """Handshakes of strangers who know the public key; tells what came back."""
    key = base64.b64decode(arguments.server_key)
    flood(arguments, [initiation(key) for _ in range(20_000)])


def forged_data(arguments):
    """Noise as data (WireGuard paper, section 5.4.6) of the first sessions of the first peer of each shard."""
    indexes = [shard << 8 | session for shard in range(arguments.shards) for session in range(4)]
    flood(arguments, [
        b"\x04\0\0\0" + struct.pack("<IQ", indexes[number % len(indexes)], 1000 + number) + os.urandom(arguments.bytes)
        for number in range(20_000)
    ])


def flood(arguments, messages):
    """Sends messages to one port, and tells what came back."""
    socket_ = socket.socket(family(arguments.to[0]), socket.SOCK_DGRAM)
    socket_.connect(arguments.to)
    socket_.setblocking(False)
    sent = replies = reply_bytes = 0
    for number in paced(arguments.rate, arguments.seconds):
        try:
            socket_.send(messages[number % len(messages)])
            sent += 1
        except OSError:
            pass
        if number % 64 == 0:
            try:
                while True:
                    reply_bytes += len(socket_.recv(2048))
                    replies += 1
            except OSError:
                pass
    say(sent=sent, per_second=int(sent / arguments.seconds), replies=replies, reply_bytes=reply_bytes)


# --- a bad path ----------------------------------------------------------------------


def relay(arguments):
    """Passes datagrams on both ways, late, twice, out of order or not at all."""
    outside = socket.socket(family(arguments.listen[0]), socket.SOCK_DGRAM)
    outside.bind(arguments.listen)
    inside = socket.socket(family(arguments.to[0]), socket.SOCK_DGRAM)
    inside.connect(arguments.to)
    for each in (outside, inside):
        each.setblocking(False)
        each.setsockopt(socket.SOL_SOCKET, 33, 32 << 20)  # SO_RCVBUFFORCE
    client, queue, order = None, [], 0
    dice = random.Random(1)
    print("ready", flush=True)
    while True:
        wait = max(0, queue[0][0] - time.monotonic()) if queue else None
        readable, _, _ = select.select([outside, inside], [], [], wait)
        now = time.monotonic()
        for each in readable:
            for _ in range(256):
                try:
                    datagram, sender = each.recvfrom(65_535)
                except OSError:
                    break
                if each is outside:
                    client = sender
                if len(datagram) > arguments.longest or dice.random() < arguments.lose:
                    continue
                due = now + arguments.delay
                if dice.random() < arguments.reorder:
                    due += 0.01
                for _ in range(2 if dice.random() < arguments.duplicate else 1):
                    heapq.heappush(queue, (due, order, each is outside, datagram))
                    order += 1
        while queue and queue[0][0] <= time.monotonic():
            _, _, up, datagram = heapq.heappop(queue)
            try:
                if up:
                    inside.send(datagram)
                elif client:
                    outside.sendto(datagram, client)
            except OSError:
                pass


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)

    def command(name, run, to=True, **defaults):
        sub = commands.add_parser(name)
        sub.set_defaults(run=run)
        if to:
            sub.add_argument("to", type=address)
        for key, value in defaults.items():
            sub.add_argument(f"--{key.replace('_', '-')}", type=type(value), default=value)
        return sub

    command("serve", serve, to=False).add_argument("address", type=address, nargs="+")
    sub = command("transfer", transfer, bytes=1 << 20, patience=float(PATIENCE))
    sub.add_argument("direction", choices=("up", "down"))
    command("connects", connects, seconds=5.0, pause=0.01, patience=10.0)
    command("stay", stay, seconds=5.0, pause=0.05, patience=float(PATIENCE))
    command("sit", sit, flows=1000)
    command("keep", keep, flows=0)
    command("syn-flood", syn_flood, rate=50_000, seconds=10.0, source="")
    command("udp-spray", udp_spray, rate=50_000, seconds=10.0)
    command("handshakes", handshakes, rate=20_000, seconds=10.0, server_key="")
    command("forged-data", forged_data, rate=100_000, seconds=10.0, shards=2, bytes=128)
    sub = command("relay", relay, delay=0.0, lose=0.0, duplicate=0.0, reorder=0.0, longest=65_535)
    sub.add_argument("--listen", type=address, required=True)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
