# shellcheck shell=bash
# What scripts/bench runs besides the gateway: the peers, from the package registries,
# and the loads, from this repository. Sourced after common.sh.

readonly GOTATUN_VERSION=0.10.2 BORINGTUN_VERSION=0.7.1
PEERS_BIN=$TARGET_DIR/peers/bin
readonly PEERS_BIN

# Open files: what is asked for, and what 10,000 flows and some room need.
readonly FILE_LIMIT=131072 FILE_LIMIT_LEAST=12000

prepare_tools() {
    need_packages cc:gcc /usr/include/stdio.h:libc6-dev ip:iproute2 sysctl:procps wg:wireguard-tools \
        wireguard-go:wireguard-go iperf3:iperf3 ethtool:ethtool jq:jq python3:python3
    build_release
    build_load
    install_peer gotatun-cli gotatun "$GOTATUN_VERSION"
    install_peer boringtun-cli boringtun-cli "$BORINGTUN_VERSION"
}

# build_load: the loads iperf3 does not have, as PORTCULLIS_LOAD_BIN.
build_load() {
    if [[ -n ${PORTCULLIS_LOAD_BIN:-} ]]; then
        [[ -x $PORTCULLIS_LOAD_BIN ]] || die "PORTCULLIS_LOAD_BIN=$PORTCULLIS_LOAD_BIN is not an executable"
        PORTCULLIS_LOAD_BIN=$(realpath -- "$PORTCULLIS_LOAD_BIN")
        return 0
    fi
    need_cargo
    note 'building portcullis-load in release mode'
    cargo_as_owner build --quiet --locked --release --package portcullis-load || die 'the build of the loads failed'
    PORTCULLIS_LOAD_BIN=$TARGET_DIR/release/portcullis-load
}

# install_peer CRATE COMMAND VERSION: into the target directory, unless it is there.
install_peer() {
    local crate=$1 command=$2 version=$3
    [[ ! -x $PEERS_BIN/$command || $("$PEERS_BIN/$command" --version) != *" $version" ]] || return 0
    need_cargo
    note "installing $crate $version"
    # Built in a temporary directory, which cargo removes.
    (unset CARGO_TARGET_DIR && cargo_as_owner install --quiet --locked --root "$TARGET_DIR/peers" \
        --version "$version" "$crate") || die "could not install $crate"
}

# A line for each thing a reader must know to compare figures.
describe_machine() {
    local model
    model=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)
    printf '%s cores, %s, Linux %s, TCP %s, load average at the start %s\n' "$(nproc)" \
        "${model:-unknown processor}" "$(uname -r)" "$CONGESTION_CONTROL" "$(cut -d' ' -f1 /proc/loadavg)"
    printf '%s, %s, %s, %s, %s\n' "$("$PORTCULLIS_BIN" --version)" "$("$PEERS_BIN/boringtun-cli" --version)" \
        "$("$PEERS_BIN/gotatun" --version)" "$(wireguard-go --version | head -n 1)" \
        "$(iperf3 --version | head -n 1 | cut -d' ' -f1,2)"
}

# raise_file_limit: the gateway and both ends of the loads have a descriptor a flow.
raise_file_limit() {
    ulimit -n "$FILE_LIMIT" 2>/dev/null || ulimit -n "$(ulimit -Hn)"
    [[ $(ulimit -n) == unlimited || $(ulimit -n) -ge $FILE_LIMIT_LEAST ]] ||
        die "needs a limit on open files of $FILE_LIMIT_LEAST: ulimit -Hn says $(ulimit -Hn)"
}
