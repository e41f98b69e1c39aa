"""One device, or a stranger, spends all it can: what do the others notice? (SECURITY.md)"""

import time

from lab import HOLE, NEIGHBOUR_TARGET, TUN_TARGET, WIREGUARD_PORT, WIREGUARD_TARGET, Failed, Gateway, until

# A neighbour's new connections may take twice as long as without the attack. An attacker's
# own sending takes half of a machine of two cores, whatever the gateway does, so without means:
# while a firewall drops the same packets in front of the gateway. A tick of the scheduler is
# below what can be told apart.
TICK_MS = 1
LENGTH = 10
CONTROL = 4
# Zero-window readers tried, and what all of their buffers together may cost.
SITTERS = 10_000
SITTERS_MB = 600
# The default of `[limits] flows_per_device`.
FLOWS_OF_A_DEVICE = 4096


def calm(lab, target=NEIGHBOUR_TARGET):
    return lab.ask("b", "connects", target, "--seconds", 3)


def dropped_in_front(lab, attack, target=NEIGHBOUR_TARGET):
    """The neighbour's connections while the same packets come as far as this host and no farther."""
    lab.nft("gateway", "table netdev front { chain in { type filter hook ingress device wana priority 0; ether type arp accept; drop; }; }\n")
    attacker = lab.attack(*attack, "--seconds", CONTROL)
    time.sleep(0.5)
    during = lab.ask("b", "connects", target, "--seconds", CONTROL - 1)
    attacker.result()
    lab.nft("gateway", "delete table netdev front\n")
    return during


def compare(before, during, figures, control=None):
    figures |= {"p99 calm, ms": before["p99_ms"], "p99 under attack, ms": during["p99_ms"]}
    least = before["p99_ms"]
    if control:
        figures["p99 with the attack past the gateway, ms"] = control["p99_ms"]
        least = max(least, control["p99_ms"])
    if during["failed"]:
        raise Failed(f"{during['failed']} of {during['count'] + during['failed']} connections failed: {during['last']}")
    if during["p99_ms"] > 2 * least + TICK_MS:
        raise Failed("the neighbour waits more than twice as long")


def under_attack(lab, gateway, figures, *attack, target=NEIGHBOUR_TARGET):
    """Runs an attack from `a` and a neighbour's connections from `b`."""
    before, memory = calm(lab, target), gateway.rss()
    control = dropped_in_front(lab, attack, target)
    attacker = lab.attack(*attack, "--seconds", LENGTH)
    time.sleep(0.5)
    cpu = gateway.cpu()
    during = lab.ask("b", "connects", target, "--seconds", LENGTH - 2)
    figures["gateway CPU, %"] = round((gateway.cpu() - cpu) / (LENGTH - 2) * 100)
    sent = attacker.result()
    gateway.must_live()
    figures["attacks a second"] = sent["per_second"]
    figures["peak MB"] = round(gateway.rss())
    compare(before, during, figures, control)
    figures["MB before, after"] = f"{memory:.0f}, {gateway.settle(memory):.0f}"
    return sent


def syn_flood_into_a_hole(lab, figures):
    """50,000 SYN/s to a target that does not answer: neighbour's connect p99 <= 2x, memory back"""
    gateway = Gateway(lab).start()
    under_attack(lab, gateway, figures, "syn-flood", HOLE, "--source", "198.51.100.2")


def syn_flood_of_the_neighbours_target(lab, figures):
    """50,000 SYN/s to the target itself: neighbour's connect p99 <= 2x, memory back"""
    gateway = Gateway(lab).start()
    under_attack(lab, gateway, figures, "syn-flood", TUN_TARGET, "--source", "198.51.100.2")


def udp_spray(lab, figures):
    """50,000 datagrams/s to ever new ports: neighbour's connect p99 <= 2x, memory back"""
    gateway = Gateway(lab, limits='udp_idle_one_way = "5s"').start()
    under_attack(lab, gateway, figures, "udp-spray", "10.0.8.10:20000")


def zero_window_readers(lab, figures):
    """10,000 flows that ask for everything and read nothing: memory bounded, neighbour's p99 <= 2x"""
    gateway = Gateway(lab).start()
    before = calm(lab)
    # As many as a device may have, and they keep the target as busy, past the gateway.
    beside = lab.peer("private", "sit", TUN_TARGET, "--flows", FLOWS_OF_A_DEVICE, ready="open", patience=240)
    control = calm(lab)
    beside.stop()
    time.sleep(2)
    memory = gateway.rss()
    sitters = lab.peer("a", "sit", TUN_TARGET, "--flows", SITTERS, ready="open", patience=240)
    figures["flows open"] = sitters.text().strip()
    during = calm(lab)
    gateway.must_live()
    figures["MB before, with them"] = f"{memory:.0f}, {gateway.rss():.0f}"
    if gateway.rss() - memory > SITTERS_MB:
        raise Failed(f"they cost {gateway.rss() - memory:.0f} MB")
    compare(before, during, figures, control)
    sitters.stop()
    until(30, "their flows are over", lambda: gateway.metric("portcullis_flows_open") < 5, 0.5)
    figures["MB after"] = round(gateway.settle(memory, slack=40))


def handshake_flood(lab, figures):
    """20,000 handshakes/s of strangers who know the public key: at most a quarter of a core, a newcomer is in within 10 s"""
    gateway = Gateway(lab).start()
    before, memory = calm(lab), gateway.rss()
    flood = ("handshakes", f"198.51.100.1:{WIREGUARD_PORT}", "--server-key", gateway.public)
    control = dropped_in_front(lab, flood)
    attacker = lab.attack(*flood, "--seconds", LENGTH + 5)
    time.sleep(1)
    cpu, began = gateway.cpu(), time.monotonic()
    time.sleep(4)
    figures["gateway CPU, %"] = round((gateway.cpu() - cpu) / (time.monotonic() - began) * 100)
    began = time.monotonic()
    gateway.connect_laptop()
    figures["newcomer in after, s"] = round(time.monotonic() - began, 2)
    during = calm(lab)
    sent = attacker.result()
    figures |= {"handshakes a second": sent["per_second"], "bytes out per byte in": round(sent["reply_bytes"] / (sent["sent"] * 148), 3)}
    gateway.must_live()
    if figures["newcomer in after, s"] > 10:
        raise Failed("the newcomer waited too long")
    if figures["gateway CPU, %"] > 25:
        raise Failed("more than a quarter of a core")
    compare(before, during, figures, control)
    gateway.settle(memory)


def forged_data(lab, figures):
    """100,000 datagrams/s of noise that name a live session, and so its shard: silence, its connections' p99 <= 2x"""
    gateway = Gateway(lab).start()
    gateway.connect_laptop()
    to = f"198.51.100.1:{WIREGUARD_PORT}"
    sent = under_attack(lab, gateway, figures, "forged-data", to, target=WIREGUARD_TARGET)
    if sent["reply_bytes"]:
        raise Failed(f"strangers got {sent['reply_bytes']} bytes back")


EXPERIMENTS = [
    syn_flood_into_a_hole,
    syn_flood_of_the_neighbours_target,
    udp_spray,
    zero_window_readers,
    handshake_flood,
    forged_data,
]
