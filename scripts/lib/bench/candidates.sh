# shellcheck shell=bash
# The gateways that scripts/bench compares, the clients that reach them, and the hosts
# behind them. Sourced after netns.sh, tools.sh and configuration.sh.

# Names of network interfaces: at most 15 characters, and of this run only, for the
# control sockets of userspace WireGuard are one directory for all namespaces.
readonly CLIENT_LINK=benchc$$ GATEWAY_LINK=benchg$$
readonly IPERF_PORT=5201 BACKGROUND_PORT=5202
readonly HTTP=$PRIVATE_WEB:80 ECHO=$PRIVATE_ECHO:7778 UDP_SINK=$PRIVATE_ECHO:7779 HOLD=$PRIVATE_DB:7780

# CANDIDATE is what runs; COLUMN is where its figures go, the same unless a group says
# otherwise. Kernel forwarding has no process, so no GATEWAY_PID.
CANDIDATE='' COLUMN='' CONGESTION_CONTROL='' GATEWAY_PID='' SITE_PID='' CLIENT_PID='' CROWD_PID='' HOLD_PID=''

# --- the private network -------------------------------------------------------------

start_services() {
    local port
    for port in "$IPERF_PORT" "$BACKGROUND_PORT"; do
        lab_spawn "$NS_PRIVATE" "$LAB_DIR/services.log" iperf3 --server --port "$port"
    done
    lab_spawn "$NS_PRIVATE" "$LAB_DIR/services.log" "$PORTCULLIS_LOAD_BIN" serve \
        --http "$HTTP" --tcp-echo "$ECHO" --udp-sink "$UDP_SINK" --hold "$HOLD"
    wait_for 10 grep -q '^ready' "$LAB_DIR/services.log" ||
        { cat "$LAB_DIR/services.log" >&2; die "the private network's services did not start"; }
}

reach_private() { in_ns "$NS_CLIENT" bash -c ": </dev/tcp/${ECHO/:/\/}" 2>/dev/null; }

need_private() { wait_for 15 reach_private || cannot_measure 'a connection to the private network'; }

# lab_single_datagrams: on a wire, datagrams are one by one. A veth would pass on what
# the load hands over in one call as one packet, and its rate would count system calls.
lab_single_datagrams() {
    in_ns "$NS_CLIENT" ethtool -K eth0 tx-udp-segmentation off
}

# lab_congestion_control: Linux's own default, as CONGESTION_CONTROL, whatever this host's is. BBR
# paces every connection with a timer of its own, which would be measured in the place of the gateway.
lab_congestion_control() {
    local ns candidate
    for candidate in cubic reno; do
        CONGESTION_CONTROL=$candidate
        for ns in "$NS_CLIENT" "$NS_GATEWAY" "$NS_PRIVATE"; do
            # A namespace may use only what the host allows everybody.
            in_ns "$ns" sysctl -qw net.ipv4.tcp_congestion_control="$candidate" 2>/dev/null || continue 2
        done
        return 0
    done
    die 'the host allows neither cubic nor reno: see net.ipv4.tcp_allowed_congestion_control'
}

# lab_many_connections: tens of thousands of short connections a second, from one
# address to one port, must not run out of ports.
lab_many_connections() {
    local ns
    for ns in "$NS_CLIENT" "$NS_GATEWAY" "$NS_PRIVATE"; do
        in_ns "$ns" sysctl -qw net.ipv4.ip_local_port_range='10000 65535' net.ipv4.tcp_tw_reuse=1 \
            net.core.somaxconn=16384 net.ipv4.tcp_max_syn_backlog=16384
    done
}

# --- gateways ------------------------------------------------------------------------

# start_kernel: nothing but the gateway namespace's own routing.
start_kernel() {
    CANDIDATE='kernel forwarding' COLUMN='kernel forwarding' GATEWAY_PID=''
    need_private
}

# start_portcullis NAME: with the files of `LAB_DIR/NAME`.
start_portcullis() {
    local config=$LAB_DIR/$1/gateway.toml
    rm -f -- "$LAB_DIR/$1/flows.jsonl"
    start_gateway portcullis "$PORTCULLIS_BIN" run --config "$config"
    wait_for 30 in_ns "$NS_GATEWAY" "$PORTCULLIS_BIN" status --config "$config" || cannot_measure 'the start'
    GATEWAY_PUBLIC=$PORTCULLIS_PUBLIC
}

# The TUN on-ramp, once it passes connections on.
start_portcullis_tun() {
    start_portcullis tun
    need_private
}

# The same by off-ramp, which is the column.
# shellcheck disable=SC2034 # COLUMN is read by measure.sh
start_offramp_direct() {
    start_portcullis tun
    COLUMN='direct'
    need_private
}

# shellcheck disable=SC2034 # COLUMN is read by measure.sh
start_offramp_kernel() {
    start_portcullis kernel
    COLUMN='kernel'
    need_private
}

start_offramp_wireguard() { start_site forward 'wireguard'; }

start_offramp_terminate() { start_site terminate 'wireguard, terminated'; }

# start_site MODE COLUMN: the peer of the site works in batches, so that it is not the limit.
# shellcheck disable=SC2034 # COLUMN is read by measure.sh
start_site() {
    start_portcullis "$1"
    COLUMN=$2
    start_batched "$NS_PRIVATE" "$PRIVATE_GATEWAY" "$SITE_PEER" "$SITE_ADDRESS/32"
    SITE_PID=$LAB_PID
    need_private
}

start_portcullis_wireguard() { start_portcullis wireguard; }

start_wireguard_go() { start_peer wireguard-go wireguard-go --foreground "$GATEWAY_LINK"; }

start_boringtun() {
    start_peer boringtun-cli "$PEERS_BIN/boringtun-cli" --foreground --disable-drop-privileges "$GATEWAY_LINK"
}

start_gotatun() {
    start_peer gotatun-cli "$PEERS_BIN/gotatun" --foreground --disable-drop-privileges "$GATEWAY_LINK"
}

# start_peer NAME COMMAND...: a WireGuard of userspace on GATEWAY_LINK, which leaves
# the forwarding to the kernel.
start_peer() {
    start_gateway "$@"
    set_up_wireguard "$NS_GATEWAY" "$GATEWAY_LINK" "$TUNNEL_GATEWAY/16" listen-port "$TUNNEL_PORT" \
        private-key "$LAB_DIR/peer.key" peer "$CLIENT_PUBLIC" allowed-ips "$TUNNEL_CLIENT/32"
    GATEWAY_PUBLIC=$PEER_PUBLIC
}

# start_gateway NAME COMMAND...
# shellcheck disable=SC2034 # COLUMN is read by measure.sh
start_gateway() {
    CANDIDATE=$1 COLUMN=$1
    shift
    : >"$LAB_DIR/gateway.log"
    lab_spawn "$NS_GATEWAY" "$LAB_DIR/gateway.log" "$@"
    GATEWAY_PID=$LAB_PID
}

# set_up_wireguard NAMESPACE LINK ADDRESS WG_SET_ARGUMENT...
set_up_wireguard() {
    local ns=$1 link=$2 address=$3
    shift 3
    wait_for 10 listens_for_wg "$ns" "$link" || cannot_measure "the start of $link"
    in_ns "$ns" wg set "$link" "$@"
    ip -n "$ns" address add "$address" dev "$link"
    ip -n "$ns" link set "$link" mtu "$TUNNEL_MTU" up
}

# Whether a WireGuard of userspace can be spoken to. Not by asking it: `wg` removes a
# control socket that is bound and does not listen yet.
listens_for_wg() { in_ns "$1" grep -q " 00010000 .*/wireguard/*$2\.sock$" /proc/net/unix; }

stop_gateway() {
    [[ -z $GATEWAY_PID ]] || lab_stop "$GATEWAY_PID"
    GATEWAY_PID=''
    [[ -z $SITE_PID ]] || lab_stop "$SITE_PID"
    SITE_PID=''
    rm -f -- "/run/wireguard/$GATEWAY_LINK.sock"
}

# --- clients of the WireGuard on-ramp ------------------------------------------------

# connect_gotatun: the client of every gateway where the two are compared as one would
# use them.
connect_gotatun() {
    lab_spawn "$NS_CLIENT" "$LAB_DIR/client.log" "$PEERS_BIN/gotatun" --foreground --disable-drop-privileges "$CLIENT_LINK"
    CLIENT_PID=$LAB_PID
    set_up_wireguard "$NS_CLIENT" "$CLIENT_LINK" "$TUNNEL_CLIENT/32" private-key "$LAB_DIR/client.key" \
        peer "$GATEWAY_PUBLIC" endpoint "$OUTER_GATEWAY:$TUNNEL_PORT" allowed-ips "$PRIVATE_NETWORK"
    ip -n "$NS_CLIENT" route add "$PRIVATE_NETWORK" dev "$CLIENT_LINK"
    need_private
}

# connect_batched: our own client, which works in batches so that it is not the limit.
connect_batched() {
    start_batched "$NS_CLIENT" "$OUTER_GATEWAY" "$TUNNEL_CLIENT" "$PRIVATE_NETWORK"
    CLIENT_PID=$LAB_PID
    need_private
}

# start_batched NAMESPACE GATEWAY ADDRESS ROUTE: it runs as LAB_PID.
start_batched() {
    : >"$LAB_DIR/client.log"
    lab_spawn "$1" "$LAB_DIR/client.log" "$PORTCULLIS_LOAD_BIN" wireguard --interface "$CLIENT_LINK" \
        --private-key-file "$LAB_DIR/client.key" --peer "$GATEWAY_PUBLIC" --endpoint "$2:$TUNNEL_PORT" \
        --address "$3/32" --route "$4" --mtu "$TUNNEL_MTU"
    wait_for 15 grep -q '^ready' "$LAB_DIR/client.log" || cannot_measure "the handshake of our own client"
}

disconnect_client() {
    lab_stop "$CLIENT_PID"
    rm -f -- "/run/wireguard/$CLIENT_LINK.sock"
}

# connect_peers N: connects so many peers of `add_peers`, which then only keep their
# tunnels alive until `disconnect_peers`. Each has an address of its own, as clients have:
# the handshakes of one address are limited.
connect_peers() {
    ip -n "$NS_CLIENT" route replace local "$PEERS_NETWORK" dev lo
    ip -n "$NS_GATEWAY" route replace "$PEERS_NETWORK" via "$OUTER_CLIENT"
    : >"$LAB_DIR/peers.log"
    lab_spawn "$NS_CLIENT" "$LAB_DIR/peers.log" "$PORTCULLIS_LOAD_BIN" peers --peers "$1" --connect \
        --endpoint "$OUTER_GATEWAY:$TUNNEL_PORT" --server-key "$GATEWAY_PUBLIC" --from "$PEERS_NETWORK"
    CROWD_PID=$LAB_PID
    wait_for 60 grep -q '"connected"' "$LAB_DIR/peers.log" || cannot_measure "connecting $1 peers"
}

disconnect_peers() { lab_stop "$CROWD_PID"; }

# --- open flows ----------------------------------------------------------------------

# hold_flows N: opens so many connections and leaves them idle until `release_flows`.
hold_flows() {
    local open
    : >"$LAB_DIR/hold.log"
    lab_spawn "$NS_CLIENT" "$LAB_DIR/hold.log" "$PORTCULLIS_LOAD_BIN" hold "$HOLD" --flows "$1"
    HOLD_PID=$LAB_PID
    wait_for 60 grep -q '"open"' "$LAB_DIR/hold.log" || cannot_measure "opening $1 flows"
    open=$(grep -m 1 '"open"' "$LAB_DIR/hold.log" | jq .open)
    [[ $open == "$1" ]] || cannot_measure "opening $1 flows: $open are open"
}

release_flows() { lab_stop "$HOLD_PID"; }

# --- end -----------------------------------------------------------------------------

# cannot_measure WHAT: ends the run, with what was measured until then.
cannot_measure() {
    local log
    [[ ! -s $LAB_DIR/figures ]] || print_tables >&2
    for log in gateway client peers hold services; do
        [[ ! -s $LAB_DIR/$log.log ]] || { note "--- $log.log"; tail -n 20 "$LAB_DIR/$log.log"; } >&2
    done
    die "cannot measure: $* with $CANDIDATE"
}

bench_down() {
    lab_down
    rm -f -- "/run/wireguard/$CLIENT_LINK.sock" "/run/wireguard/$GATEWAY_LINK.sock"
}
