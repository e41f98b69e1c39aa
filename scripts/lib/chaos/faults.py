"""What the world does to a gateway: each time it goes on, and no byte is wrong."""

import contextlib
import json
import os
import signal
import threading
import time
from pathlib import Path

from lab import TUN_TARGET, WIREGUARD_PORT, WIREGUARD_TARGET, RULE, Failed, Gateway, policy, run, until

MIB = 1 << 20
RELAY = "127.0.0.1:40000"
GATEWAY = f"198.51.101.1:{WIREGUARD_PORT}"
# Flows that are judged again at once, and how much longer than in calm another device's flow may wait meanwhile: a
# slice of the pass takes no 5 ms, and the rest is what a busy machine of two cores does by itself.
LIVE = 10_000
KEEPER = "10.0.8.10:7100"
JUDGING_MS = 20
DENY = {"id": "closed", "action": "deny", "from": ["device:attacker"], "to": ["*"]}


def whole(lab, which, to, direction, size, **options):
    """A transfer that must arrive whole."""
    result = lab.ask(which, "transfer", to, direction, "--bytes", size, **options)
    if result["outcome"] != "whole":
        raise Failed(f"{direction}: {result['outcome']} after {result['bytes']} bytes")
    return result["seconds"]


def both_ways(lab, which, to, size, figures, name="s up, down"):
    figures[name] = f"{whole(lab, which, to, 'up', size)}, {whole(lab, which, to, 'down', size)}"


def healthy(lab, gateway):
    """A gateway that passes a megabyte and says so in the metrics."""
    gateway.must_live()
    both_ways(lab, "b", TUN_TARGET, MIB, {})


# --- resources -----------------------------------------------------------------------


@contextlib.contextmanager
def small_disk(lab, megabytes):
    directory = lab.dir / f"disk-{lab.count}"
    directory.mkdir()
    run("mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0700", "tmpfs", str(directory))
    try:
        yield directory
    finally:
        run("umount", "-l", str(directory))


def fill(disk):
    """A file that leaves no room for another byte."""
    filler = disk / "filler"
    with open(filler, "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return filler


def disk_full_flow_log(lab, figures):
    """The disk of the flow log is full: flows go on, each record is written in the end or counted as lost"""
    with small_disk(lab, 1) as disk:
        gateway = Gateway(lab, log=disk).start()
        filler = fill(disk)
        asked = lab.ask("b", "connects", TUN_TARGET, "--seconds", 2)["count"]
        healthy(lab, gateway)
        filler.unlink()
        asked += lab.ask("b", "connects", TUN_TARGET, "--seconds", 1)["count"]
        log = disk / "flows.jsonl"

        def accounted():
            written = len(log.read_text().splitlines())
            lost = gateway.metric("portcullis_flow_records_lost_total")
            figures.update({"records written": written, "lost and counted": int(lost)})
            return written + lost >= asked and tail_is_whole(log)

        until(10, "every record is written or counted", accounted, 0.25)
        gateway.stop()


def tail_is_whole(path):
    lines = path.read_text().splitlines()
    try:
        return bool(lines) and json.loads(lines[-1])["ended"] is not None
    except ValueError:
        return False


def disk_full_state(lab, figures):
    """The disk of state_dir is full: it serves, restarts and serves"""
    with small_disk(lab, 1) as disk:
        gateway = Gateway(lab, state=disk).start()
        gateway.connect_laptop()
        fill(disk)
        time.sleep(3)
        healthy(lab, gateway)
        both_ways(lab, "b", WIREGUARD_TARGET, MIB, figures)
        gateway.process.signal(signal.SIGKILL)
        until(5, "its end", lambda: not gateway.process.alive())
        gateway.start()
        healthy(lab, gateway)
        gateway.stop()


def out_of_descriptors(lab, figures):
    """Every descriptor is in use: new flows are refused and written down, open ones go on, and it recovers"""
    gateway = Gateway(lab, limits="flows_per_device = 4000\nhalf_open_per_device = 4000").start()
    run("prlimit", "--pid", str(gateway.process.pid), "--nofile=300:300")
    talk = lab.peer("b", "stay", TUN_TARGET, "--seconds", 8)
    time.sleep(0.5)
    sitters = lab.peer("a", "sit", TUN_TARGET, "--flows", 600, ready="open", patience=120)
    figures["sitters"] = sitters.text().strip()
    stayed = talk.result()
    if stayed["outcome"] != "alive":
        raise Failed(f"an open flow: {stayed['outcome']}")
    figures["longest wait of an open flow, ms"] = stayed["longest_ms"]
    gateway.must_live()
    sitters.stop()
    until(20, "it recovers", lambda: lab.ask("b", "connects", TUN_TARGET, "--seconds", 0.2)["count"], 0.5)
    healthy(lab, gateway)


def memory_cgroup(lab, figures):
    """256 MB and no more, 3,000 readers that do not read: it is not killed, the neighbour connects"""
    group = Path("/sys/fs/cgroup/memory") / lab.name
    limit = "memory.limit_in_bytes"
    if not group.parent.is_dir():
        group, limit = Path("/sys/fs/cgroup") / lab.name, "memory.max"
    group.mkdir()
    try:
        (group / limit).write_text(str(256 << 20))
        gateway = Gateway(lab).start()
        (group / "cgroup.procs").write_text(str(gateway.process.pid))
        sitters = lab.peer("a", "sit", TUN_TARGET, "--flows", 3000, ready="open", patience=120)
        figures["sitters"] = sitters.text().strip()
        figures["MB"] = round(gateway.rss())
        healthy(lab, gateway)
        sitters.stop()
        gateway.stop()
    finally:
        until(10, "the cgroup is empty", lambda: not (group / "cgroup.procs").read_text().strip())
        group.rmdir()


# --- time ----------------------------------------------------------------------------

def wall_clock(lab, figures):
    """The wall clock jumps by a day, back by two, and by four years: flows go on, new ones open, tunnels live"""
    setting = lab.dir / "clock"
    setting.write_text("+0")
    library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    gateway = Gateway(lab).start(
        "env", f"LD_PRELOAD={library}", f"FAKETIME_TIMESTAMP_FILE={setting}", "FAKETIME_NO_CACHE=1",
        "DONT_FAKE_MONOTONIC=1", "FAKETIME_DONT_FAKE_MONOTONIC=1",
    )
    gateway.connect_laptop()
    flow = lab.peer("b", "stay", WIREGUARD_TARGET, "--seconds", 9)
    for jump in ("+1d", "-1d", "+1460d", "+0"):
        setting.write_text(jump)
        time.sleep(2)
        gateway.must_live()
        opened = lab.ask("b", "connects", WIREGUARD_TARGET, "--seconds", 0.2)
        if not opened["count"] or opened["failed"]:
            raise Failed(f"at {jump}: {opened['last']}")
    stayed = flow.result()
    figures["longest wait, ms"] = stayed["longest_ms"]
    if stayed["outcome"] != "alive":
        raise Failed(f"an open flow: {stayed['outcome']}")


def stopped_for(seconds):
    def experiment(lab, figures):
        gateway = Gateway(lab).start()
        gateway.connect_laptop()
        flow = lab.peer("b", "stay", WIREGUARD_TARGET, "--seconds", seconds + 10, "--patience", seconds + 60)
        time.sleep(1)
        gateway.process.signal(signal.SIGSTOP)
        time.sleep(seconds)
        gateway.process.signal(signal.SIGCONT)
        began = time.monotonic()
        healthy(lab, gateway)
        figures["serves again after, s"] = round(time.monotonic() - began, 2)
        stayed = flow.result()
        figures["open flow"] = stayed["outcome"]
        if stayed["outcome"] != "alive":
            raise Failed(f"an open flow: {stayed['outcome']}")
        both_ways(lab, "b", WIREGUARD_TARGET, MIB, figures)

    experiment.__name__ = f"stopped_for_{seconds}_s"
    experiment.__doc__ = f"The process is stopped for {seconds} s (SIGSTOP): flows and tunnels go on"
    return experiment


# --- paths ---------------------------------------------------------------------------


def target_resets(lab, figures):
    """The target resets: the client sees a reset, never a clean end"""
    gateway = Gateway(lab).start()
    # All that the target's side sends after some megabytes are resets.
    lab.nft("private", "table inet cut { chain out { type filter hook output priority 0; }; }\n")
    flow = lab.peer("b", "transfer", TUN_TARGET, "down", "--bytes", 1 << 33)
    time.sleep(1)
    rule = "table inet cut { chain in { type filter hook input priority 0; tcp dport 7000 reject with tcp reset; }; }\n"
    lab.nft("private", rule)
    figures["client sees"] = flow.result()["outcome"]
    lab.clean_nft("private")
    if figures["client sees"] != "reset":
        raise Failed("a cut must be a reset")
    healthy(lab, gateway)


def target_falls_silent(lab, figures):
    """The target falls silent in the middle: the flow waits, others do not notice; back again, it goes on whole"""
    gateway = Gateway(lab).start()
    flow = lab.peer("b", "transfer", TUN_TARGET, "down", "--bytes", 400 * MIB)
    time.sleep(0.3)
    lab.nft("private", "table inet cut { chain out { type filter hook output priority 0; ip saddr 10.0.8.10 drop; }; }\n")
    time.sleep(3)
    other = lab.ask("b", "connects", "10.0.9.10:7000", "--seconds", 1)
    lab.clean_nft("private")
    result = flow.result()
    figures |= {"others' p99, ms": other["p99_ms"], "outcome": result["outcome"]}
    if result["outcome"] != "whole" or other["failed"]:
        raise Failed(result["outcome"])
    healthy(lab, gateway)


def link_down(lab, figures):
    """The client's link is down for 20 s in the middle of a transfer: it arrives whole"""
    gateway = Gateway(lab).start()
    flow = lab.peer("b", "transfer", TUN_TARGET, "up", "--bytes", 2000 * MIB, "--patience", 120)
    time.sleep(0.3)
    lab.ip("gateway", "link", "set", "wanb", "down")
    time.sleep(20)
    lab.ip("gateway", "link", "set", "wanb", "up")
    result = flow.result()
    figures |= {"outcome": result["outcome"], "s": result["seconds"]}
    if result["outcome"] != "whole":
        raise Failed(result["outcome"])
    healthy(lab, gateway)


def lossy(percent):
    def experiment(lab, figures):
        Gateway(lab).start()
        for which, match in (("gateway", 'iifname "wanb"'), ("b", 'iifname "eth0"')):
            # Segments of their own, or a whole super-packet would be lost at once.
            lab.inside(which, "ethtool", "-K", "wanb" if which == "gateway" else "eth0", "tso", "off", "gso", "off", "gro", "off")
            lab.nft(which, "table inet loss { chain in { type filter hook prerouting priority -300; "
                    f"{match} numgen random mod 100 < {percent} drop; }}; }}\n")
        both_ways(lab, "b", TUN_TARGET, (32 if percent < 20 else 4) * MIB, figures)

    experiment.__name__ = f"loss_{percent}_percent"
    experiment.__doc__ = f"{percent} % of the packets between client and gateway are lost: every byte arrives"
    return experiment


def relayed(name, what, size, *options):
    def experiment(lab, figures):
        gateway = Gateway(lab).start()
        lab.peer("b", "relay", GATEWAY, "--listen", RELAY, *options, ready="ready")
        gateway.connect_laptop(RELAY)
        both_ways(lab, "b", WIREGUARD_TARGET, size, figures)
        gateway.must_live()

    experiment.__name__ = name
    experiment.__doc__ = what
    return experiment


def black_hole_outside(lab, figures):
    """Outer datagrams over 1,300 bytes vanish: small traffic goes on, a big transfer is cut or waits, nothing else suffers"""
    gateway = Gateway(lab).start()
    lab.peer("b", "relay", GATEWAY, "--listen", RELAY, "--longest", 1300, ready="ready")
    gateway.connect_laptop(RELAY)
    big = lab.ask("b", "transfer", WIREGUARD_TARGET, "down", "--bytes", MIB, "--patience", 8)
    small = lab.ask("b", "connects", WIREGUARD_TARGET, "--seconds", 1)
    figures |= {"big transfer": big["outcome"], "small p99, ms": small["p99_ms"]}
    if big["outcome"] not in ("timeout", "reset", "whole") or small["failed"]:
        raise Failed(big["outcome"])
    healthy(lab, gateway)


def black_hole_inside(lab, figures):
    """Packets over 1,000 bytes vanish between gateway and target, without a word: others do not notice"""
    gateway = Gateway(lab).start()
    lab.inside("gateway", "ethtool", "-K", "lan0", "tso", "off", "gso", "off")
    lab.nft("private", "table inet hole { chain in { type filter hook prerouting priority -300; "
            "ip daddr 10.0.8.10 meta length > 1000 drop; }; }\n")
    big = lab.ask("b", "transfer", TUN_TARGET, "up", "--bytes", MIB, "--patience", 8)
    small = lab.ask("b", "connects", TUN_TARGET, "--seconds", 1)
    lab.clean_nft("private")
    figures |= {"big transfer": big["outcome"], "small p99, ms": small["p99_ms"]}
    if big["outcome"] not in ("timeout", "reset", "whole") or small["failed"]:
        raise Failed(f"{big['outcome']}, {small['last']}")
    healthy(lab, gateway)


def roaming(lab, figures):
    """The WireGuard client changes its port each second: transfers arrive whole"""
    gateway = Gateway(lab).start()
    gateway.connect_laptop()
    name = f"wgc{os.getpid()}"
    moving = threading.Event()

    def move():
        port = 50_000
        while not moving.wait(1):
            port += 1
            lab.inside("b", "wg", "set", name, "listen-port", str(port))

    mover = threading.Thread(target=move)
    mover.start()
    try:
        both_ways(lab, "b", WIREGUARD_TARGET, 150 * MIB, figures)
    finally:
        moving.set()
        mover.join()
    gateway.must_live()


def policy_swapped(lab, figures):
    """The policy changes ten times a second: allowed flows go on, revoked ones die, every transfer is whole or reset"""
    gateway = Gateway(lab).start()
    flow = lab.peer("b", "stay", TUN_TARGET, "--seconds", 10)
    transfer = lab.peer("b", "transfer", TUN_TARGET, "down", "--bytes", 600 * MIB)
    swaps, refused, end = 0, 0, time.monotonic() + 9
    while time.monotonic() < end:
        began = time.monotonic()
        gateway.write("policy.json", policy(RULE) if swaps % 2 else policy(DENY, RULE))
        refused += gateway.command("reload") is None
        swaps += 1
        time.sleep(max(0, 0.1 - (time.monotonic() - began)))
    stayed, moved = flow.result(), transfer.result()
    figures |= {"swaps": swaps, "longest wait, ms": stayed["longest_ms"], "transfer": moved["outcome"]}
    if refused or stayed["outcome"] != "alive" or moved["outcome"] != "whole":
        raise Failed(f"{refused} reloads refused, open flow {stayed['outcome']}, transfer {moved['outcome']}")
    gateway.write("policy.json", policy(DENY, RULE))
    gateway.command("reload")
    if lab.ask("a", "connects", TUN_TARGET, "--seconds", 0.2, "--patience", 2)["count"]:
        raise Failed("the attacker's device is denied and connects")
    healthy(lab, gateway)


def judged_again(lab, figures):
    """10,000 live flows are judged again within a second of a swap, while another device's flow waits for nothing"""
    raised = [f"{limit}_per_{who} = 20000" for limit in ("flows", "flow_rate") for who in ("device", "user")]
    gateway = Gateway(lab, limits="\n".join(raised)).start()
    lab.peer("private", "keep", KEEPER, ready="ready")
    sitters = lab.peer("a", "keep", KEEPER, "--flows", LIVE, ready="open", patience=240)
    calm = lab.ask("b", "stay", TUN_TARGET, "--seconds", 3, "--pause", 0.001)
    open_flows = gateway.metric("portcullis_flows_open")
    if open_flows < LIVE:
        raise Failed(f"only {open_flows:.0f} flows are open")
    # Rules that say the same: everybody is judged, and nobody loses.
    other = RULE | {"id": "still-open"}
    took, waiting = [], lab.peer("b", "stay", TUN_TARGET, "--seconds", 6, "--pause", 0.001)
    for swap in range(10):
        gateway.write("policy.json", policy(RULE if swap % 2 else other))
        began = time.monotonic()
        if gateway.command("reload") is None:
            raise Failed("a reload was refused")
        took.append(time.monotonic() - began)
        time.sleep(0.3)
    waited = waiting.result()
    figures |= {"reload, ms: median, longest": f"{sorted(took)[len(took) // 2] * 1000:.0f}, {max(took) * 1000:.0f}"}
    figures["round trip of another's flow, ms: longest calm, longest meanwhile"] = (
        f"{calm['longest_ms']}, {waited['longest_ms']}"
    )
    if gateway.metric("portcullis_flows_open") < LIVE:
        raise Failed("flows were lost that every policy allows")
    gateway.write("policy.json", policy(DENY, RULE))
    began, cpu = time.monotonic(), gateway.cpu()
    gateway.command("reload")
    ended, cpu = time.monotonic() - began, gateway.cpu() - cpu
    left = gateway.metric("portcullis_flows_open")
    figures["all of them revoked, ms, and CPU ms"] = f"{ended * 1000:.0f}, {cpu * 1000:.0f}"
    sitters.stop()
    if left > 10 or max(took) > 1 or ended > 1 or waited["outcome"] != "alive":
        raise Failed(f"{left:.0f} flows left after {ended:.2f} s, a reload took {max(took):.2f} s")
    if waited["longest_ms"] > calm["longest_ms"] + JUDGING_MS:
        raise Failed("another device's flow waited")
    healthy(lab, gateway)


def restart(lab, figures):
    """kill -9 and a restart, 20 times: a WireGuard client passes traffic within 2 s without doing anything"""
    gateway = Gateway(lab).start()
    gateway.connect_laptop()
    took = []
    for _ in range(20):
        # The endpoint is remembered a moment after it was heard.
        time.sleep(2)
        gateway.process.signal(signal.SIGKILL)
        until(5, "its end", lambda: not gateway.process.alive(), 0.01)
        gateway.start()
        began = time.monotonic()
        until(30, "traffic", lambda: lab.ask("b", "connects", WIREGUARD_TARGET, "--seconds", 0.01, "--patience", 1.1)["count"], 0.01)
        took.append(round(time.monotonic() - began, 2))
    took.sort()
    figures |= {"median s": took[10], "95 % s": took[18], "worst s": took[-1]}
    if took[18] > 2:
        raise Failed("more than 2 s")


def soak(minutes):
    def experiment(lab, figures):
        gateway = Gateway(lab).start()
        gateway.connect_laptop()
        healthy(lab, gateway)
        memory, end, rounds, worst = gateway.rss(), time.monotonic() + minutes * 60, 0, 0
        while time.monotonic() < end:
            for to in (TUN_TARGET, WIREGUARD_TARGET):
                both_ways(lab, "b", to, 64 * MIB, {})
                answer = lab.ask("b", "connects", to, "--seconds", 5)
                if answer["failed"]:
                    raise Failed(answer["last"])
                worst = max(worst, answer["p99_ms"])
            rounds += 1
            gateway.must_live()
        figures |= {"rounds": rounds, "worst p99, ms": worst}
        figures["MB before, after"] = f"{memory:.0f}, {gateway.settle(memory, slack=48):.0f}"

    experiment.__name__ = "soak"
    experiment.__doc__ = f"{minutes} minutes of transfers and connections on both on-ramps: no failure, memory as before"
    return experiment


EXPERIMENTS = [
    restart,
    disk_full_flow_log,
    disk_full_state,
    out_of_descriptors,
    memory_cgroup,
    wall_clock,
    stopped_for(5),
    stopped_for(30),
    target_resets,
    target_falls_silent,
    link_down,
    lossy(1),
    lossy(5),
    lossy(20),
    relayed("reordering", "5 % of the datagrams come 10 ms late: every byte arrives", 4 * MIB, "--reorder", 0.05),
    relayed("duplication", "20 % of the datagrams come twice: every byte arrives, once", 8 * MIB, "--duplicate", 0.2),
    relayed("delay", "100 ms each way: every byte arrives", 8 * MIB, "--delay", 0.1),
    black_hole_outside,
    black_hole_inside,
    roaming,
    policy_swapped,
    judged_again,
]
LONG = [stopped_for(200)]
