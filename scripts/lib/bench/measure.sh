# shellcheck shell=bash
# The measurements of scripts/bench, each of whichever candidate runs now. Sourced
# after candidates.sh.

# BULK_SECONDS is the caller's; the other lengths keep the whole run under ten minutes.
BULK_SECONDS=2
readonly RATE_SECONDS=2 ROUND_TRIP_SECONDS=1 UDP_SECONDS=3 IDLE_SECONDS=5 RELOAD_SECONDS=3
# Clock ticks a second, which /proc counts CPU time in.
TICKS=$(getconf CLK_TCK)
readonly TICKS
RUN=0 GROUP=''

progress_line() { printf '%s  %s%s\n' "$DIM" "$*" "$PLAIN" >&2; }

progress() { progress_line "run $RUN, $GROUP: $COLUMN, $*"; }

# record ROW UNIT EXPRESSION [FILE]: one figure of this run, as jq finds it.
record() {
    local value
    value=$(jq -n -e "${4:+input | }$3" ${4:+"$4"}) || cannot_measure "$1, $2"
    printf '%s\t%s\t%s\t%s\t%s\t%s\n' "$RUN" "$GROUP" "$1" "$2" "$COLUMN" "$value" >>"$LAB_DIR/figures"
}

# CPU time of the gateway's process so far, user and system, in clock ticks; nothing
# for kernel forwarding.
gateway_ticks() {
    [[ -n $GATEWAY_PID ]] || return 0
    local stat
    read -r stat <"/proc/$GATEWAY_PID/stat" || die "$CANDIDATE died"
    # Field 2 may hold spaces; after it, utime and stime are the 12th and 13th.
    # shellcheck disable=SC2086 # split on purpose
    set -- ${stat##*) }
    printf '%s' $((${12} + ${13}))
}

# measure_bulk ROW FLOWS up|down [SECONDS]: TCP throughput, and the CPU time of the
# gateway's process for it.
measure_bulk() {
    local row=$1 flows=$2 direction=$3 seconds=${4:-$BULK_SECONDS} result=$LAB_DIR/iperf.json before after
    local arguments=(--json --client "$PRIVATE_WEB" --port "$IPERF_PORT" --time "$seconds" --parallel "$flows")
    [[ $direction == up ]] || arguments+=(--reverse)
    progress "$row"
    # A control connection that is still going away makes iperf3's server busy.
    local try
    for try in 1 2 3 4 5; do
        before=$(gateway_ticks)
        if in_ns "$NS_CLIENT" timeout $((seconds + 20)) iperf3 "${arguments[@]}" >"$result"; then
            break
        fi
        [[ $try -lt 5 ]] || { cat "$result" >&2; cannot_measure "$row"; }
        sleep 0.5
    done
    after=$(gateway_ticks)
    record "$row" 'Gbit/s' '.end.sum_received.bits_per_second / 1e9' "$result"
    [[ -n $before ]] || return 0
    record "$row" 'CPU s/GB' "($after - $before) / $TICKS / (.end.sum_received.bytes / 1e9)" "$result"
}

# measure_load ROW KEY=UNIT... -- COMMAND...: what one of our loads found.
measure_load() {
    local row=$1 result=$LAB_DIR/load.json pair units=()
    shift
    while [[ $1 != -- ]]; do
        units+=("$1")
        shift
    done
    shift
    progress "$row"
    in_ns "$NS_CLIENT" timeout 60 "$PORTCULLIS_LOAD_BIN" "$@" >"$result" || cannot_measure "$row"
    for pair in "${units[@]}"; do
        record "$row" "${pair#*=}" ".${pair%%=*}" "$result"
    done
}

# measure_connections ROW [SECONDS]: connect, one request of HTTP, close.
measure_connections() {
    measure_load "$1" per_second=conn/s 'p50_us=p50 us' 'p99_us=p99 us' -- \
        connections "$HTTP" --seconds "${2:-$RATE_SECONDS}"
}

# measure_requests ROW: requests of HTTP on connections that stay open.
measure_requests() {
    measure_load "$1" per_second=requests/s 'p50_us=p50 us' 'p99_us=p99 us' -- \
        requests "$HTTP" --seconds "$RATE_SECONDS"
}

# measure_round_trip ROW: one byte there and back on one open connection.
measure_round_trip() {
    measure_load "$1" 'p50_us=p50 us' 'p99_us=p99 us' -- round-trip "$ECHO" --seconds "$ROUND_TRIP_SECONDS"
}

# measure_udp ROW BYTES: the highest rate with at most 1 % lost.
measure_udp() {
    measure_load "$1" packets_per_second=packets/s -- udp "$UDP_SINK" --size "$2" --seconds "$UDP_SECONDS"
}

# measure_memory ROW: what the gateway's process holds, and what it does at rest.
measure_memory() {
    local row=$1 before after kilobytes
    progress "$row"
    sleep 1
    before=$(gateway_ticks)
    sleep "$IDLE_SECONDS"
    after=$(gateway_ticks)
    kilobytes=$(sed -n 's/^VmRSS:[^0-9]*\([0-9]*\).*/\1/p' "/proc/$GATEWAY_PID/status")
    record "$row" 'RSS MB' "$kilobytes * 1024 / 1e6"
    record "$row" 'idle CPU %' "($after - $before) / $TICKS / $IDLE_SECONDS * 100"
}

# measure_reloads ROW: how long a reload takes, asked and answered, until every live flow
# has been judged again; and the round trips of one of the flows while it is judged.
measure_reloads() {
    local row=$1 config=$LAB_DIR/tun/gateway.toml result=$LAB_DIR/load.json began ended load
    local took=$LAB_DIR/reloads
    progress "$row"
    measure_load "$row, no reload" 'p99_us=p99 us' 'max_us=max us' -- round-trip "$ECHO" --seconds "$RELOAD_SECONDS"
    : >"$result"
    : >"$took"
    in_ns "$NS_CLIENT" "$PORTCULLIS_LOAD_BIN" round-trip "$ECHO" --seconds "$RELOAD_SECONDS" >"$result" &
    load=$!
    sleep 0.5
    while kill -0 "$load" 2>/dev/null; do
        began=$(date +%s%N)
        in_ns "$NS_GATEWAY" "$PORTCULLIS_BIN" reload --json --config "$config" >"$LAB_DIR/reload.json" ||
            cannot_measure 'a reload'
        ended=$(date +%s%N)
        jq -e .judged "$LAB_DIR/reload.json" >/dev/null || cannot_measure 'a reload that judged every flow'
        echo $(((ended - began) / 1000)) >>"$took"
        sleep 0.1
    done
    wait "$load" || cannot_measure 'round trips while reloading'
    record "$row" 'p99 us' .p99_us "$result"
    record "$row" 'max us' .max_us "$result"
    record "$row" 'longest ms' "$(sort -n "$took" | tail -n 1) / 1000"
    record "$row" 'reloads' "$(wc -l <"$took")"
}
