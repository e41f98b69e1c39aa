# shellcheck shell=bash
# Three network namespaces in a row, and the processes in them. Sourced after
# common.sh, by demo and bench.
#
#     client               gateway                     private
#     198.51.100.2 ------- 198.51.100.1    10.0.8.1 -- 10.0.8.10 10.0.8.20 10.0.8.30
#     2001:db8:1::2        2001:db8:1::1   fd08::1     fd08::10
#
# Everything is named after the script and its process, so that two runs do not
# meet, and is gone when `lab_down` returns. Only processes inside these three
# namespaces are ended, each by its own process id.

OUTER_CLIENT=198.51.100.2
OUTER_GATEWAY=198.51.100.1
PRIVATE_GATEWAY=10.0.8.1
PRIVATE_WEB=10.0.8.10
PRIVATE_DB=10.0.8.20
PRIVATE_ECHO=10.0.8.30
readonly OUTER_CLIENT OUTER_GATEWAY PRIVATE_GATEWAY PRIVATE_WEB PRIVATE_DB PRIVATE_ECHO

NS_CLIENT='' NS_GATEWAY='' NS_PRIVATE='' LAB_DIR=''

# lab_do COMMAND...: runs it, and with LAB_SHOW set says so before.
lab_do() {
    [[ -z ${LAB_SHOW:-} ]] || printf '%s# %s%s\n' "$DIM" "$(quoted "$@")" "$PLAIN"
    "$@"
}

# lab_up NAME: makes the namespaces and a temporary directory, LAB_DIR.
lab_up() {
    local name=$1-$$ ns
    [[ -c /dev/net/tun ]] || die "/dev/net/tun is missing: modprobe tun"
    LAB_DIR=$(mktemp -d "${TMPDIR:-/tmp}/portcullis-$name.XXXXXX")
    # Readable for the tools that change user; the secrets inside are 0600.
    chmod 755 "$LAB_DIR"
    NS_CLIENT=$name-client NS_GATEWAY=$name-gateway NS_PRIVATE=$name-private
    for ns in "$NS_CLIENT" "$NS_GATEWAY" "$NS_PRIVATE"; do
        lab_do ip netns add "$ns" || die "cannot make network namespaces here: run it on a host or in a privileged container"
        lab_do ip -n "$ns" link set lo up
        # No waiting for duplicate address detection on links we just made.
        lab_do ip netns exec "$ns" sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0 \
            net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0
    done

    lab_do ip link add wan0 netns "$NS_GATEWAY" type veth peer name eth0 netns "$NS_CLIENT"
    lab_do ip link add lan0 netns "$NS_GATEWAY" type veth peer name eth0 netns "$NS_PRIVATE"

    lab_address "$NS_CLIENT" eth0 "$OUTER_CLIENT/24" 2001:db8:1::2/64
    lab_address "$NS_GATEWAY" wan0 "$OUTER_GATEWAY/24" 2001:db8:1::1/64
    lab_address "$NS_GATEWAY" lan0 "$PRIVATE_GATEWAY/24" fd08::1/64
    lab_address "$NS_PRIVATE" eth0 "$PRIVATE_WEB/24" "$PRIVATE_DB/24" "$PRIVATE_ECHO/24" fd08::10/64

    # Ping sockets: how a gateway sends an echo request of its own.
    lab_do ip netns exec "$NS_GATEWAY" sysctl -qw net.ipv4.ping_group_range='0 2147483647'
}

lab_address() {
    local ns=$1 link=$2 address
    shift 2
    for address in "$@"; do
        lab_do ip -n "$ns" address add "$address" dev "$link"
    done
    lab_do ip -n "$ns" link set "$link" up
}

# lab_forwarding: lets the gateway's kernel route between the two sides, which a
# routed host (TUN on-ramp) and kernel forwarding need and WireGuard does not.
lab_forwarding() {
    in_ns "$NS_GATEWAY" sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
    ip -n "$NS_CLIENT" route replace default via "$OUTER_GATEWAY"
    ip -n "$NS_CLIENT" -6 route replace default via 2001:db8:1::1
    ip -n "$NS_PRIVATE" route replace default via "$PRIVATE_GATEWAY"
    ip -n "$NS_PRIVATE" -6 route replace default via fd08::1
}

in_ns() {
    local ns=$1
    shift
    ip netns exec "$ns" "$@"
}

# lab_spawn NAMESPACE LOGFILE COMMAND...: starts COMMAND in the background; its
# process id is in LAB_PID.
LAB_PID=''
lab_spawn() {
    local ns=$1 log=$2
    shift 2
    ip netns exec "$ns" "$@" >>"$log" 2>&1 </dev/null &
    # shellcheck disable=SC2034 # read by the callers
    LAB_PID=$!
}

# lab_stop PID: asks the process to end and waits for it, for at most 15 s.
lab_stop() {
    local pid=$1
    kill -TERM "$pid" 2>/dev/null || return 0
    wait_for 15 lab_gone "$pid" || kill -KILL "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
}

# A process that ended and was not yet waited for counts as gone.
lab_gone() {
    local stat
    read -r stat <"/proc/$1/stat" 2>/dev/null || return 0
    [[ ${stat##*) } == Z* ]]
}

# lab_services: the private network's web server, TCP service and UDP echo.
lab_services() {
    lab_spawn "$NS_PRIVATE" "$LAB_DIR/services.log" python3 "$ROOT/scripts/lib/services.py" \
        --web "$PRIVATE_WEB:80" --greet "$PRIVATE_DB:5432" --udp-echo "$PRIVATE_ECHO:7777"
    local pid=$LAB_PID
    wait_for 10 grep -q '^ready$' "$LAB_DIR/services.log" ||
        { cat "$LAB_DIR/services.log" >&2; die "the private network's services (pid $pid) did not start"; }
}

# lab_down: ends every process in the three namespaces and removes all of it. Safe
# to call twice, and from a trap.
lab_down() {
    local ns pid signal
    for signal in TERM KILL; do
        for ns in "$NS_CLIENT" "$NS_GATEWAY" "$NS_PRIVATE"; do
            [[ -n $ns && -e /run/netns/$ns ]] || continue
            for pid in $(ip netns pids "$ns" 2>/dev/null); do
                kill "-$signal" "$pid" 2>/dev/null || true
            done
        done
        [[ $signal == KILL ]] || wait_for 5 lab_empty || true
    done
    for ns in "$NS_CLIENT" "$NS_GATEWAY" "$NS_PRIVATE"; do
        [[ -n $ns && -e /run/netns/$ns ]] || continue
        ip netns delete "$ns" || true
    done
    [[ -z $LAB_DIR ]] || rm -rf -- "$LAB_DIR"
    NS_CLIENT='' NS_GATEWAY='' NS_PRIVATE='' LAB_DIR=''
}

lab_empty() {
    local ns
    for ns in "$NS_CLIENT" "$NS_GATEWAY" "$NS_PRIVATE"; do
        [[ -z $ns || ! -e /run/netns/$ns || -z $(ip netns pids "$ns" 2>/dev/null) ]] || return 1
    done
}
