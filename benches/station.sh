#!/usr/bin/env bash
# The numbers of docs/station.md: the station at full speed on synthetic cells, and what a broker's restart costs.
#
#   benches/station.sh [CELLS [OPTION OF fit...]]     default 100000, some 20 minutes on two cores; 2000 for a look
#   benches/station.sh 100000 --size 64 --grid 16 -k 24     a small model: memory and faults in some minutes
#
# Draws cells and fits a model, then runs `cellgate run` three times: CELLS cells as fast as they are judged,
# without a broker; 100 cells, each drawn anew, three a second; and 1,000 to mosquitto, which is away for three seconds in
# the middle. Needs mosquitto (apt), curl and python3.
set -euo pipefail
cd "$(dirname "$0")/.."

cells=${1:-100000}
shift || true
cargo build --release --locked --bin cellgate
cellgate=$PWD/target/release/cellgate
work=$(mktemp -d)
clean_up() {
    [ ! -s "$work/mosquitto.pid" ] || kill "$(cat "$work/mosquitto.pid")" 2>/dev/null || true
    rm -rf "$work"
}
trap clean_up EXIT
cd "$work"

"$cellgate" fit --synth 400 -o model.cgm "$@" >/dev/null

# config COUNT PERIOD PREPARED MORE…
config() {
    cat >cellgate.toml <<TOML
[model]
path = "model.cgm"
[camera]
kind = "synthetic"
count = $1
period-ms = $2
prepared = $3
proportions = [0.9, 0.05, 0.05]
[outbox]
path = "outbox"
verdicts = 200000
[operations]
metrics = "127.0.0.1:9465"
log-level = "warn"
${4:-}
TOML
    rm -f outbox
}

# Resident memory of the process, by its own word.
resident() {
    curl -s http://127.0.0.1:9465/metrics | awk '/^cellgate_memory_resident_bytes / { print $2 }'
}

# run: the station; prints its summary with memory after 3 s and at the end, and what it took.
run() {
    "$cellgate" run --json --config cellgate.toml >summary.json &
    local station=$! first='' last='' now
    sleep 3
    first=$(resident)
    while kill -0 "$station" 2>/dev/null; do
        now=$(resident || true)
        [ -z "$now" ] || last=$now
        sleep 0.5
    done
    wait "$station"
    python3 - "$1" "$first" "$last" "$SECONDS" <<'PY'
import json, sys
name, first, last, seconds = sys.argv[1:]
s = json.load(open("summary.json"))
mb = lambda text: f"{float(text or 'nan') / 1e6:.1f} MB"
print(f"{name}: {s['cells']} cells, p50/p99/p99.9 {s['latency_p50_ms']:.1f}/{s['latency_p99_ms']:.1f}/{s['latency_p999_ms']:.1f} ms, "
      f"{s['cells'] / float(seconds):.1f} cells/s, resident {mb(first)} → {mb(last)}, invalid {s['invalid']}, "
      f"delivered {s['delivered']}, pending {s['pending']}, faults {({k: v for k, v in s['faults'].items() if v})}")
PY
}

config "$cells" 0 64
SECONDS=0
run "full speed"

config 100 333 0
SECONDS=0
run "three a second"

port=18931
printf 'user root\nlistener %s 127.0.0.1\nallow_anonymous true\npid_file %s/mosquitto.pid\n' "$port" "$work" >mosquitto.conf
mosquitto=$(command -v mosquitto || echo /usr/sbin/mosquitto)
"$mosquitto" -d -c mosquitto.conf
config 1000 0 64 "[mqtt]
host = \"127.0.0.1\"
port = $port"
SECONDS=0
{
    sleep 5
    kill "$(cat mosquitto.pid)"
    sleep 3
    "$mosquitto" -d -c mosquitto.conf
} &
run "broker gone for 3 s"
wait
