# shellcheck shell=bash
# How long a WireGuard client is without traffic when its gateway dies and starts
# again. Sourced after common.sh and netns.sh by whoever has built the binary.

# measure_restarts RUNS: kills the gateway so often under traffic of a wireguard-go
# client, and prints the distribution. Fails when a run takes longer than 2 s.
measure_restarts() {
    local runs=$1 status=0
    lab_up restart
    lab_services
    (
        cd -- "$LAB_DIR" || exit 1
        in_ns "$NS_GATEWAY" "$PORTCULLIS_BIN" init --dir gateway --endpoint "$OUTER_GATEWAY:51820" >init.log 2>&1 ||
            { cat init.log >&2; exit 1; }
        in_ns "$NS_GATEWAY" "$PORTCULLIS_BIN" device add laptop --user ann@example.com \
            --config gateway/gateway.toml >wgrestart.conf 2>>init.log || { cat init.log >&2; exit 1; }
        chmod 600 wgrestart.conf
        printf '{ "version": 1, "rules": [ { "id": "all", "action": "allow", "from": ["*"], "to": ["10.0.8.0/24"] } ] }' \
            >gateway/policy.json
        in_ns "$NS_CLIENT" env WG_QUICK_USERSPACE_IMPLEMENTATION=wireguard-go wg-quick up ./wgrestart.conf >wg.log 2>&1 ||
            { cat wg.log >&2; exit 1; }
        # The first handshake is the client's own: it has nobody to have it with before the gateway starts.
        in_ns "$NS_CLIENT" python3 "$ROOT/scripts/lib/restart.py" --runs "$runs" --echo "$PRIVATE_ECHO:7777" -- \
            ip netns exec "$NS_GATEWAY" "$PORTCULLIS_BIN" run --config gateway/gateway.toml 2>gateway.log ||
            { tail -n 20 gateway.log >&2; exit 1; }
    ) || status=$?
    lab_down
    return "$status"
}
