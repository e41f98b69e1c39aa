# shellcheck shell=bash
# The groups of scripts/bench that compare the gateway with itself, as flows, peers
# and rules become many. Sourced after measure.sh.

readonly GROWTH_SECONDS=1

# measure_growth COUNT: one bulk flow and new connections, in the column of COUNT.
# shellcheck disable=SC2034 # COLUMN is read by measure.sh
measure_growth() {
    COLUMN=$1
    measure_bulk 'TCP, 1 flow, down' 1 down "$GROWTH_SECONDS"
    measure_connections 'short connections' "$GROWTH_SECONDS"
}

# Flows that are open and idle, through the TUN on-ramp.
group_flows() {
    local count
    for count in 1 1000 10000; do
        start_portcullis_tun
        hold_flows "$count"
        measure_growth "$count"
        release_flows
        stop_gateway
    done
}

# Peers that are connected and idle, beside the one that is measured.
group_peers() {
    local count
    for count in 1 1000 10000; do
        add_peers "$count"
        start_portcullis_wireguard
        connect_peers "$count"
        connect_batched
        measure_growth "$count"
        disconnect_client
        disconnect_peers
        stop_gateway
    done
    write_directory wireguard "$(wireguard_client)"
}

# Rules in front of the one that decides.
group_rules() {
    local count
    for count in 10 1000 10000; do
        write_policy tun "$count"
        start_portcullis_tun
        measure_growth "$count"
        stop_gateway
    done
    write_policy tun 1
}

# Idle flows through the TUN on-ramp.
group_memory() {
    start_portcullis_tun
    hold_flows 10000
    measure_memory '10,000 idle flows'
    release_flows
    stop_gateway
}

# Every open flow is judged again by each load of the policy, while one of them talks.
# shellcheck disable=SC2034 # COLUMN is read by measure.sh
group_reload() {
    local count
    for count in 1 10000; do
        start_portcullis_tun
        hold_flows "$count"
        COLUMN=$count
        measure_reloads 'reloads one after another'
        release_flows
        stop_gateway
    done
}
