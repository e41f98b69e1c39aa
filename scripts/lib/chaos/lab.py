"""Namespaces, the gateway under attack, and processes of scripts/chaos.

        a (attacker)  198.51.100.2 --- 198.51.100.1 \\
                                                      gateway --- 10.0.8.10, 10.0.9.10  private
        b (neighbour) 198.51.101.2 --- 198.51.101.1 /

Both clients are routed into the TUN for 10.0.8.0/24; `b` is also a WireGuard client
(100.96.0.2, wireguard-go) for 10.0.9.0/24. Everything is named after this process and
gone at the end; only processes started here are ended.
"""

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
PEER = [os.environ.get("PYTHON", "python3"), str(HERE / "peer.py")]
TUN_TARGET, WIREGUARD_TARGET = "10.0.8.10:7000", "10.0.9.10:7000"
# The same host, served by another process: what a neighbour asks for.
NEIGHBOUR_TARGET = "10.0.8.10:7001"
HOLE = "10.0.8.99:7000"  # routed, and nobody answers
METRICS = "127.0.0.1:9464"
WIREGUARD_PORT = 51820


class Failed(Exception):
    """The pass line of an experiment does not hold."""


def run(*command, **options):
    return subprocess.run(command, check=True, capture_output=True, text=True, **options).stdout


def until(seconds, what, condition, pause=0.05):
    """Waits until `condition`, and returns how long it took."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > seconds:
            raise Failed(f"{what}: not within {seconds} s")
        time.sleep(pause)
    return time.monotonic() - began


class Process:
    """One of ours, with its output in a file."""

    def __init__(self, command, log, **options):
        self.log = Path(log)
        self.output = open(self.log, "wb")
        self.popen = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=self.output, stderr=subprocess.STDOUT, **options
        )
        self.pid = self.popen.pid

    def alive(self):
        return self.popen.poll() is None

    def signal(self, number):
        if self.alive():
            self.popen.send_signal(number)

    def stop(self, patience=15):
        self.signal(signal.SIGTERM)
        try:
            self.popen.wait(patience)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
        self.output.close()

    def text(self):
        return self.log.read_text(errors="replace")

    def result(self, patience=300):
        """Waits for its end and reads its last line as JSON."""
        self.popen.wait(patience)
        lines = [line for line in self.text().splitlines() if line.startswith("{")]
        if not lines:
            raise Failed(f"no result: {self.text().strip()[-200:]}")
        return json.loads(lines[-1])


class Lab:
    def __init__(self, binary):
        self.binary = binary
        self.dir = Path(tempfile.mkdtemp(prefix="portcullis-chaos."))
        self.name = f"chaos-{os.getpid()}"
        self.processes = []
        self.count = 0

    # --- namespaces ---

    def ns(self, which):
        return f"{self.name}-{which}"

    def ip(self, which, *command):
        run("ip", "-n", self.ns(which), *command)

    def inside(self, which, *command):
        return run("ip", "netns", "exec", self.ns(which), *command)

    def nft(self, which, rules):
        run("ip", "netns", "exec", self.ns(which), "nft", "-f", "-", input=rules)

    def clean_nft(self, which):
        self.nft(which, "flush ruleset\n")

    def up(self):
        for which in ("a", "b", "gateway", "private"):
            run("ip", "netns", "add", self.ns(which))
            self.ip(which, "link", "set", "lo", "up")
            self.inside(which, "sysctl", "-qw", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.default.rp_filter=0")
        self.link("wana", "a", "198.51.100.1/24", "198.51.100.2/24")
        self.link("wanb", "b", "198.51.101.1/24", "198.51.101.2/24")
        self.link("lan0", "private", "10.0.8.1/24", "10.0.8.10/24")
        self.ip("gateway", "address", "add", "10.0.9.1/24", "dev", "lan0")
        self.ip("private", "address", "add", "10.0.9.10/24", "dev", "eth0")
        for which, router in (("a", "198.51.100.1"), ("b", "198.51.101.1"), ("private", "10.0.8.1")):
            self.ip(which, "route", "add", "default", "via", router)
        self.inside("gateway", "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv4.ping_group_range=0 2147483647")
        # Nobody is there, and nobody says so.
        self.ip("gateway", "neighbour", "add", "10.0.8.99", "lladdr", "02:00:00:00:00:63", "dev", "lan0", "nud", "permanent")
        for which in ("a", "b", "gateway", "private"):
            self.inside(which, "sysctl", "-qw", "net.ipv4.ip_local_port_range=10000 65535", "net.core.somaxconn=8192")
        self.spawn("private", *PEER, "serve", TUN_TARGET, NEIGHBOUR_TARGET, WIREGUARD_TARGET, ready="ready")

    def link(self, name, other, here, there):
        run("ip", "link", "add", name, "netns", self.ns("gateway"), "type", "veth", "peer", "name", "eth0", "netns", self.ns(other))
        for which, device, address in (("gateway", name, here), (other, "eth0", there)):
            self.ip(which, "address", "add", address, "dev", device)
            self.ip(which, "link", "set", device, "up")

    # --- processes ---

    def spawn(self, which, *command, ready=None, patience=20, **options):
        self.count += 1
        log = self.dir / f"{self.count:03}-{which}.log"
        process = Process(["ip", "netns", "exec", self.ns(which), *command], log, **options)
        self.processes.append(process)
        if ready:
            until(patience, f"{command[-1]} is ready", lambda: ready in process.text() or not process.alive())
            if not process.alive():
                raise Failed(f"{' '.join(command)}: {process.text()[-500:]}")
        return process

    def peer(self, which, *arguments, **options):
        return self.spawn(which, *PEER, *map(str, arguments), **options)

    def attack(self, *arguments):
        """Runs in `a` and gives way to the rest: an attacker has a machine of its own."""
        return self.spawn("a", "nice", "-n", "15", *PEER, *map(str, arguments))

    def ask(self, which, *arguments, patience=300):
        return self.peer(which, *arguments).result(patience)

    def down(self):
        for process in reversed(self.processes):
            process.signal(signal.SIGCONT)
            process.stop(5)
        for which in ("a", "b", "gateway", "private"):
            subprocess.run(["ip", "netns", "delete", self.ns(which)], capture_output=True)
        shutil.rmtree(self.dir, ignore_errors=True)


RULE = {"id": "open", "action": "allow", "from": ["*"], "to": ["10.0.8.0/24", "10.0.9.0/24"], "services": ["*"]}


def policy(*rules):
    return {"version": 1, "rules": list(rules)}


class Gateway:
    """The gateway under attack, with files of its own."""

    def __init__(self, lab, limits="", state=None, log=None):
        self.lab = lab
        lab.count += 1
        self.dir = lab.dir / f"gateway-{lab.count}"
        self.state = Path(state) if state else self.dir / "state"
        self.log_dir = Path(log) if log else self.dir
        self.dir.mkdir()
        self.state.mkdir(mode=0o700, exist_ok=True)
        os.chmod(self.state, 0o700)
        self.config = self.dir / "gateway.toml"
        self.private, self.public = self.key(self.state / "wireguard.key")
        self.client_private, self.client_public = self.key(self.dir / "client.key")
        self.config.write_text(
            f"""directory = "directory.json"
policy = "policy.json"
state_dir = "{self.state}"
control = "control.sock"
drain = "1s"
[log]
flows = "{self.log_dir}/flows.jsonl"
[metrics]
listen = "{METRICS}"
[limits]
{limits}
[tun]
name = "portcullis0"
addresses = ["100.97.0.1/32"]
mtu = 1500
routes = ["10.0.8.0/24"]
[wireguard]
listen = "0.0.0.0:{WIREGUARD_PORT}"
key_file = "{self.state}/wireguard.key"
addresses = ["100.96.0.1/16"]
mtu = 1420
endpoint = "198.51.101.1:{WIREGUARD_PORT}"
client_routes = ["10.0.9.0/24"]
"""
        )
        self.write("directory.json", self.directory())
        self.write("policy.json", policy(RULE))
        self.process = None

    def key(self, path):
        private = run("wg", "genkey").strip()
        if not path.exists():
            path.touch(0o600)
            path.write_text(private + "\n")
        return path, run("wg", "pubkey", input=path.read_text()).strip()

    def directory(self):
        return {
            "users": {f"{who}@example.com": {"groups": [who]} for who in ("ann", "bob", "eve")},
            "devices": {
                "attacker": {"user": "eve@example.com", "networks": ["198.51.100.2/32"]},
                "neighbour": {"user": "bob@example.com", "networks": ["198.51.101.2/32"]},
                "laptop": {"user": "ann@example.com", "public_key": self.client_public, "addresses": ["100.96.0.2"]},
            },
        }

    def write(self, name, document):
        """As an administrator's tool would: the old file or the new one, never half of it."""
        new = self.dir / f"{name}.new"
        new.write_text(json.dumps(document))
        new.rename(self.dir / name)

    def start(self, *wrapper, **options):
        # Namespaces change nothing about the process: its id is the gateway's own, wrappers exec.
        command = [*wrapper, self.lab.binary, "run", "--config", str(self.config)]
        self.process = self.lab.spawn("gateway", *command, **options)
        until(30, "the start", lambda: self.serving() or not self.process.alive())
        if not self.process.alive():
            raise Failed(f"the gateway did not start: {self.process.text()[-800:]}")
        return self

    def serving(self):
        return self.command("status") is not None

    def command(self, *arguments, timeout=20):
        """What a command of the gateway prints, or None when it fails."""
        done = subprocess.run(
            ["ip", "netns", "exec", self.lab.ns("gateway"), self.lab.binary, *arguments, "--config", str(self.config)],
            capture_output=True, text=True, timeout=timeout,
        )
        return done.stdout if done.returncode == 0 else None

    def must_live(self):
        if not self.process.alive():
            raise Failed(f"the gateway ended with {self.process.popen.returncode}: {self.process.text()[-500:]}")
        if "panicked" in self.process.text():
            raise Failed(f"a panic: {self.process.text()[-500:]}")

    def stop(self):
        if self.process:
            self.process.signal(signal.SIGCONT)
            self.process.stop()

    def rss(self):
        """Megabytes of memory in use."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1000
        raise Failed("the gateway is gone")

    def cpu(self):
        """Seconds of CPU time so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def metric(self, name, label=""):
        """Sum of a metric over its lines that hold `label`."""
        text = self.lab.inside("gateway", "curl", "-sS", "--max-time", "5", f"http://{METRICS}/metrics")
        lines = [line for line in text.splitlines() if line.split("{")[0].split(" ")[0] == name and label in line]
        return sum(float(line.rpartition(" ")[2]) for line in lines)

    def settle(self, before, slack=24, patience=20):
        """Waits until memory is back where it was, but for what an allocator keeps. Returns it."""
        until(patience, f"memory back to {before:.0f} MB", lambda: self.rss() < before + slack, 0.25)
        return self.rss()

    def connect_laptop(self, endpoint=None):
        """wireguard-go in `b`, and traffic through it."""
        lab = self.lab
        name = f"wgc{os.getpid()}"
        client = lab.spawn("b", "wireguard-go", "--foreground", name, env={**os.environ, "LOG_LEVEL": "error"})
        sock = Path(f"/run/wireguard/{name}.sock")
        until(10, "wireguard-go", sock.exists)
        time.sleep(0.2)
        lab.inside(
            "b", "wg", "set", name, "private-key", str(self.client_private), "peer", self.public, "endpoint",
            endpoint or f"198.51.101.1:{WIREGUARD_PORT}", "allowed-ips", "10.0.9.0/24", "persistent-keepalive", "25",
        )
        lab.ip("b", "address", "add", "100.96.0.2/32", "dev", name)
        lab.ip("b", "link", "set", name, "mtu", "1420", "up")
        lab.ip("b", "route", "add", "10.0.9.0/24", "dev", name)
        first = lab.ask("b", "connects", WIREGUARD_TARGET, "--seconds", 0.1)
        if not first["count"]:
            raise Failed(f"the WireGuard client does not get through: {first['last']}")
        return client
