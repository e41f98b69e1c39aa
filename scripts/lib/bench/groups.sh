# shellcheck shell=bash
# The groups of scripts/bench that compare the gateway with others. Every run calls
# each once; inside, the candidates take turns. Sourced after measure.sh.

# each CANDIDATE... -- MEASURE...: starts one after another and measures it.
each() {
    local start candidates=()
    while [[ $1 != -- ]]; do
        candidates+=("$1")
        shift
    done
    shift
    for start in "${candidates[@]}"; do
        "start_$start"
        "$@"
        stop_gateway
    done
}

# measure_bulks [SECONDS]
measure_bulks() {
    measure_bulk 'TCP, 1 flow, up' 1 up "$@"
    measure_bulk 'TCP, 1 flow, down' 1 down "$@"
    measure_bulk 'TCP, 8 flows, up' 8 up "$@"
    measure_bulk 'TCP, 8 flows, down' 8 down "$@"
}

# A host routed through the gateway.
group_tun() { each kernel portcullis_tun -- measure_bulks; }

# What becomes of the packets of a routed host: its connection ends at the gateway and
# another goes on, or they go on as they are.
group_offramps() {
    each offramp_direct offramp_kernel offramp_wireguard offramp_terminate -- measure_bulks $(((BULK_SECONDS + 1) / 2))
}

# A WireGuard client.
group_wireguard() {
    each boringtun gotatun wireguard_go portcullis_wireguard -- through_client gotatun "$BULK_SECONDS"
}

group_wireguard_batched() {
    each boringtun gotatun wireguard_go portcullis_wireguard -- through_client batched $(((BULK_SECONDS + 1) / 2))
}

# through_client CLIENT SECONDS
through_client() {
    "connect_$1"
    measure_bulks "$2"
    measure_round_trip 'round trip, idle'
    disconnect_client
}

group_http() { each kernel portcullis_tun -- measure_http; }

measure_http() {
    measure_connections 'short connections'
    measure_requests 'keep-alive requests'
}

group_udp() { each kernel portcullis_tun -- measure_udps; }

measure_udps() {
    measure_udp '100 bytes' 100
    measure_udp '1,200 bytes' 1200
}

group_round_trip() { each kernel portcullis_tun -- measure_round_trips; }

measure_round_trips() {
    local bulk
    measure_round_trip 'idle'
    lab_spawn "$NS_CLIENT" "$LAB_DIR/background.log" iperf3 --client "$PRIVATE_WEB" --port "$BACKGROUND_PORT" \
        --reverse --time 30
    bulk=$LAB_PID
    # Past the handshake and the start of the flow.
    sleep 0.3
    measure_round_trip 'under one flow down'
    ! lab_gone "$bulk" || cannot_measure 'the flow beside the round trip'
    lab_stop "$bulk"
}
