# shellcheck shell=bash
# The files of the gateways that scripts/bench starts, a directory for each in LAB_DIR:
# `tun`, `kernel`, `forward` and `terminate` (to a site) and `wireguard`, with one device, and one rule that lets it do everything in
# the private network. Sourced after netns.sh.

readonly TUNNEL_GATEWAY=100.96.0.1 TUNNEL_CLIENT=100.96.0.2 TUNNEL_MTU=1420
# Where crowds of peers send from.
readonly PEERS_NETWORK=198.18.0.0/16
# Ours at the site.
readonly SITE_ADDRESS=10.99.0.2 SITE_PEER=10.99.0.1
readonly TUNNEL_PORT=51820 FIRST_PEER=100.96.1.1 PRIVATE_NETWORK=10.0.8.0/24

# write_configurations: all files, and the keys as CLIENT_PUBLIC, PEER_PUBLIC (of every
# WireGuard peer but us) and PORTCULLIS_PUBLIC.
# shellcheck disable=SC2034 # read by candidates.sh
write_configurations() {
    (umask 077 && wg genkey >"$LAB_DIR/client.key" && wg genkey >"$LAB_DIR/peer.key")
    CLIENT_PUBLIC=$(wg pubkey <"$LAB_DIR/client.key")
    PEER_PUBLIC=$(wg pubkey <"$LAB_DIR/peer.key")

    write_gateway tun <<TOML
[tun]
name = "portcullis0"
addresses = ["100.97.0.1/32"]
mtu = 1500
routes = ["$PRIVATE_NETWORK"]
TOML
    write_directory tun "\"networks\": [\"$OUTER_CLIENT/32\"]"
    write_policy tun 1

    # The client's own network is steered, too: answers to it come back.
    write_gateway kernel <<TOML
[tun]
name = "portcullis0"
addresses = ["100.97.0.1/32"]
mtu = 1500
routes = ["$PRIVATE_NETWORK", "$OUTER_CLIENT/32"]

[[offramp]]
name = "keep"
kind = "kernel"

[[route]]
to = "0.0.0.0/0"
offramp = ["keep"]
TOML
    write_directory kernel "\"networks\": [\"$OUTER_CLIENT/32\"]"
    write_policy kernel 1

    # The site begins the handshake, from whatever port it has.
    local mode
    for mode in forward terminate; do
        write_gateway "$mode" <<TOML
[tun]
name = "portcullis0"
addresses = ["100.97.0.1/32"]
mtu = 1500
routes = ["$PRIVATE_NETWORK"]

[wireguard]
listen = "[::]:$TUNNEL_PORT"
key_file = "wireguard.key"
addresses = ["$TUNNEL_GATEWAY/16"]
mtu = $TUNNEL_MTU

[[offramp]]
name = "site"
kind = "wireguard"
mode = "$mode"
public_key = "$CLIENT_PUBLIC"
endpoint = ["$PRIVATE_WEB:$TUNNEL_PORT"]
addresses = ["$SITE_ADDRESS/32"]

[[route]]
to = "0.0.0.0/0"
offramp = ["site"]
TOML
        write_directory "$mode" "\"networks\": [\"$OUTER_CLIENT/32\"]"
        write_policy "$mode" 1
    done

    write_gateway wireguard <<TOML
[wireguard]
listen = "[::]:$TUNNEL_PORT"
key_file = "wireguard.key"
addresses = ["$TUNNEL_GATEWAY/16"]
mtu = $TUNNEL_MTU
endpoint = "$OUTER_GATEWAY:$TUNNEL_PORT"
client_routes = ["$PRIVATE_NETWORK"]
TOML
    write_directory wireguard "$(wireguard_client)"
    write_policy wireguard 1
    (umask 077 && wg genkey >"$LAB_DIR/wireguard/state/wireguard.key")
    for mode in forward terminate; do
        cp -p -- "$LAB_DIR/wireguard/state/wireguard.key" "$LAB_DIR/$mode/state/wireguard.key"
    done
    PORTCULLIS_PUBLIC=$(wg pubkey <"$LAB_DIR/wireguard/state/wireguard.key")
}

# write_gateway NAME: gateway.toml, with the on-ramp's table on standard input.
write_gateway() {
    local directory=$LAB_DIR/$1
    mkdir -p "$directory/state"
    chmod 700 "$directory/state"
    {
        cat <<'TOML'
directory = "directory.json"
policy = "policy.json"
state_dir = "state"
control = "control.sock"
drain = "1s"

[log]
flows = "flows.jsonl"

[metrics]
listen = "127.0.0.1:9464"

# One device stands for the many that would have as many flows.
[limits]
flows_per_user = 65536
flows_per_device = 65536
half_open = 8192
half_open_per_user = 8192
half_open_per_device = 8192
dials = 16384
dials_per_user = 8192
dials_per_device = 8192
flow_rate = 1000000
flow_rate_per_user = 1000000
flow_rate_per_device = 1000000
associations = 65536
associations_per_user = 65536
associations_per_device = 65536
buffered_per_user = 2147483648
buffered_per_device = 2147483648

TOML
        cat
    } >"$directory/gateway.toml"
}

# write_directory NAME KEYS: one device with those keys.
write_directory() {
    cat >"$LAB_DIR/$1/directory.json" <<JSON
{
  "users": { "bench@example.com": { "groups": ["bench"] } },
  "devices": { "client": { "user": "bench@example.com", $2 } }
}
JSON
}

wireguard_client() { printf '"public_key": "%s", "addresses": ["%s"]' "$CLIENT_PUBLIC" "$TUNNEL_CLIENT"; }

# add_peers COUNT: so many more devices of the WireGuard gateway, whose keys the loads know.
add_peers() {
    local directory=$LAB_DIR/wireguard/directory.json
    write_directory wireguard "$(wireguard_client)"
    "$PORTCULLIS_LOAD_BIN" peers --peers "$1" --first-address "$FIRST_PEER" --write-directory "$LAB_DIR/peers.json" \
        >/dev/null
    jq --slurpfile peers "$LAB_DIR/peers.json" '.devices += $peers[0].devices' "$directory" >"$LAB_DIR/directory.json"
    mv -- "$LAB_DIR/directory.json" "$directory"
}

# write_policy NAME RULES: so many rules that may match this device, of which only the
# last one does.
write_policy() {
    local rule
    {
        printf '{ "version": 1, "rules": [\n'
        for ((rule = 1; rule < $2; rule++)); do
            printf '{ "id": "other-%d", "action": "allow", "from": ["group:bench"], "to": ["10.%d.%d.0/24"], "services": ["tcp/%d"] },\n' \
                "$rule" $((16 + rule / 256)) $((rule % 256)) $((1024 + rule % 1000))
        done
        printf '{ "id": "bench", "action": "allow", "from": ["group:bench"], "to": ["%s"], "services": ["*"] }\n]}\n' \
            "$PRIVATE_NETWORK"
    } >"$LAB_DIR/$1/policy.json"
}
