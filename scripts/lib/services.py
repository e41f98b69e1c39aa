#!/usr/bin/env python3
"""The hosts of the private network, for the demo. Standard library only.

Every service is named on the command line as ADDRESS:PORT; `ready` is printed
once all of them listen.
"""

import argparse
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

DOWNLOAD_CHUNK = bytes(32 * 1024)
DOWNLOAD_PAUSE = 0.01  # about 3 MB/s: long enough to be cut while it runs
DOWNLOAD_LENGTH = 10**9


def parse_address(text):
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


def family(host):
    return socket.AF_INET6 if ":" in host else socket.AF_INET


class Web(BaseHTTPRequestHandler):
    """`/` says hello and names the peer it sees; `/download` is long and paced."""

    server_version = "intranet"
    sys_version = ""

    def do_GET(self):
        if self.path == "/download":
            self.download()
            return
        body = f"Hello from the intranet. You come from {self.client_address[0]}.\n".encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def download(self):
        self.send_response(200)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(DOWNLOAD_LENGTH))
        self.end_headers()
        sent = 0
        try:
            while sent < DOWNLOAD_LENGTH:
                self.wfile.write(DOWNLOAD_CHUNK)
                sent += len(DOWNLOAD_CHUNK)
                time.sleep(DOWNLOAD_PAUSE)
        except OSError:
            pass  # cut: what the demo wants to see

    def log_message(self, format, *args):
        pass


def serve_web(address):
    class Server(ThreadingHTTPServer):
        address_family = family(address[0])
        daemon_threads = True
        request_queue_size = 512

    server = Server(address, Web)
    threading.Thread(target=server.serve_forever, daemon=True).start()


def listen(address):
    server = socket.socket(family(address[0]), socket.SOCK_STREAM)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind(address)
    server.listen(1024)
    return server


def serve_greet(address):
    """A TCP service that is not HTTP: it speaks first, one line, and hangs up."""
    server = listen(address)

    def loop():
        while True:
            connection, _ = server.accept()
            with connection:
                try:
                    connection.sendall(b"prod-db ready\n")
                except OSError:
                    pass

    threading.Thread(target=loop, daemon=True).start()


def serve_udp_echo(address):
    server = socket.socket(family(address[0]), socket.SOCK_DGRAM)
    server.bind(address)

    def loop():
        while True:
            datagram, peer = server.recvfrom(65535)
            try:
                server.sendto(datagram, peer)
            except OSError:
                pass

    threading.Thread(target=loop, daemon=True).start()


SERVICES = {
    "web": serve_web,
    "greet": serve_greet,
    "udp_echo": serve_udp_echo,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    for name in SERVICES:
        parser.add_argument("--" + name.replace("_", "-"), type=parse_address, action="append", default=[])
    arguments = vars(parser.parse_args())
    for name, serve in SERVICES.items():
        for address in arguments[name]:
            serve(address)
    print("ready", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
