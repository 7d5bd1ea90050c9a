#!/usr/bin/env bash
# Makes a station of a board: bash provision.sh --help
set -euo pipefail

usage() {
    cat <<'TEXT'
Installs the package, writes the configuration, brings model and keys, sets the power mode, asks `cellgate doctor` and
starts the service. May run again at any time: what is as it should be is left alone, and so are settings that no option
names. As root on the board, or from elsewhere with --host.

  provision.sh [--host USER@BOARD] --package cellgate_VERSION_arm64.deb [options]

  --host USER@BOARD        by ssh: the files are copied there, and this script runs there by sudo (as root: without)
  --ssh COMMAND            how ssh is called, if not as `ssh`: --ssh 'ssh -p 2222 -i key'
  --package FILE           the package; left out: the one that is installed
  --line NAME              the line, second word of every topic
  --station NAME           the station, third word
  --broker HOST[:PORT]     the broker
  --broker-user NAME       its user name for this station
  --broker-password FILE   a file whose first line is the password
  --broker-ca FILE         the authority that signs the broker's certificate; turns TLS on
  --camera DEVICE          /dev/cellgate-camera, another device, or `synthetic` for cells that are drawn
  --model FILE             the fitted model (.cgm)
  --keys FILE              the keys that sign updates (.cgk), for a board that trusts none yet
  --set SECTION.KEY=VALUE  any other line of the configuration, VALUE as in TOML: --set display.output='"framebuffer"'
  --power-mode N           the mode of `nvpmodel`; 0 is the highest on most boards
  --clocks max|auto        max: `jetson_clocks` at each start of the service; auto: as the governor likes
  --no-start               leave the service as it is, and do not ask the doctor
  --dry-run                say what would be done, and change nothing
TEXT
}

fail() {
    printf 'provision: %s\n' "$*" >&2
    exit 1
}

host='' ssh=ssh package='' model='' keys='' broker='' broker_password='' broker_ca='' power_mode='' clocks='' start=yes dry_run=''
settings=()
# The options as they go to the board, with files under the names that they have there.
forward=() files=()

# toml_string TEXT: as TOML writes it.
toml_string() {
    local text=${1//\\/\\\\}
    printf '"%s"' "${text//\"/\\\"}"
}

while [ $# -gt 0 ]; do
    case $1 in
    --host | --ssh | --package | --line | --station | --broker | --broker-user | --broker-password | --broker-ca | --camera | \
        --model | --keys | --set | --power-mode | --clocks)
        [ $# -ge 2 ] || fail "$1 needs a value"
        ;;
    esac
    case $1 in
    --package | --broker-password | --broker-ca | --model | --keys)
        [ -r "$2" ] || fail "$1 $2 cannot be read"
        forward+=("$1" "${2##*/}") files+=("$2")
        ;;
    --host | --ssh | -h | --help) ;;
    --dry-run | --no-start) forward+=("$1") ;;
    *) forward+=("$1" "${2:-}") ;;
    esac
    case $1 in
    --host) host=$2 && shift 2 ;;
    --ssh) ssh=$2 && shift 2 ;;
    --package) package=$2 && shift 2 ;;
    --line) settings+=(mqtt line "$(toml_string "$2")") && shift 2 ;;
    --station) settings+=(mqtt station "$(toml_string "$2")") && shift 2 ;;
    --broker) broker=$2 && shift 2 ;;
    --broker-user) settings+=(mqtt username "$(toml_string "$2")") && shift 2 ;;
    --broker-password) broker_password=$2 && shift 2 ;;
    --broker-ca) broker_ca=$2 && shift 2 ;;
    --camera)
        if [ "$2" = synthetic ]; then
            settings+=(camera kind '"synthetic"')
        else
            settings+=(camera kind '"v4l"' camera device "$(toml_string "$2")")
        fi
        shift 2
        ;;
    --model) model=$2 && shift 2 ;;
    --keys) keys=$2 && shift 2 ;;
    --set)
        [[ $2 =~ ^([a-z.-]+)\.([a-z0-9-]+)=(.*)$ ]] || fail "--set $2: SECTION.KEY=VALUE is expected"
        settings+=("${BASH_REMATCH[@]:1:3}") && shift 2
        ;;
    --power-mode)
        [[ $2 =~ ^[0-9]+$ ]] || fail "--power-mode $2: a number is expected (nvpmodel -p --verbose)"
        power_mode=$2 && shift 2
        ;;
    --clocks)
        [ "$2" = max ] || [ "$2" = auto ] || fail "--clocks $2: max and auto are known"
        clocks=$2 && shift 2
        ;;
    --no-start) start='' && shift ;;
    --dry-run) dry_run=yes && shift ;;
    -h | --help) usage && exit ;;
    *) fail "unknown option $1; see --help" ;;
    esac
done

# From elsewhere: files and script into a folder of their own on the board, which goes when it is done.
if [ -n "$host" ]; then
    read -r -a remote <<<"$ssh $host"
    folder=$("${remote[@]}" 'umask 077 && mktemp -d') || fail "reaching $host by $ssh"
    trap '"${remote[@]}" "rm -rf $folder" || true' EXIT
    for file in "${BASH_SOURCE[0]}" "${files[@]}"; do
        "${remote[@]}" "cat >$folder/$(printf '%q' "${file##*/}")" <"$file" || fail "copying $file to $host"
    done
    # shellcheck disable=SC2016 # who is asked on the board
    as_root='$([ "$(id -u)" = 0 ] || echo sudo)'
    "${remote[@]}" "cd $folder && $as_root bash ${BASH_SOURCE[0]##*/}$(printf ' %q' "${forward[@]}")"
    exit
fi

config=/etc/cellgate/config.toml
state=/var/lib/cellgate
[ "$(id -u)" = 0 ] || fail "run it as root: sudo bash ${BASH_SOURCE[0]}"
changes=0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

same() { printf 'as it is: %s\n' "$*"; }

# change WHAT COMMAND…: says what changes, and does it unless this is a rehearsal.
change() {
    changes=$((changes + 1))
    printf '%s: %s\n' "${dry_run:+would }change" "$1"
    [ -n "$dry_run" ] || "${@:2}"
}

as_cellgate() { runuser -u cellgate -- "$@"; }

running() { [ -d /run/systemd/system ] && systemctl is-active --quiet cellgate; }

# put FILE PLACE OWNER:GROUP MODE: a whole file or none, and nothing if it is there already.
put() {
    if cmp -s "$1" "$2" && [ "$(stat -c '%U:%G %a' "$2")" = "$3 $4" ]; then
        same "$2"
    else
        change "$2" put_now "$@"
    fi
}

put_now() {
    local part
    part=$(mktemp "$2.XXXXXX")
    cat "$1" >"$part"
    chown "$3" "$part"
    chmod "$4" "$part"
    sync "$part"
    mv "$part" "$2"
}

# Whether every file of the package is the installed one; a rebuilt package can have the same version.
package_is_installed() {
    [ "$(dpkg-query --show --showformat '${db:Status-Status} ${Version}' cellgate 2>/dev/null)" = \
        "installed $(dpkg-deb --field "$package" Version)" ] || return 1
    dpkg-deb --control "$package" "$work/control"
    cmp -s "$work/control/md5sums" /var/lib/dpkg/info/cellgate.md5sums
}

install_package() {
    dpkg --force-confdef --force-confold --install "$package" >"$work/dpkg.log" 2>&1 ||
        { cat "$work/dpkg.log" >&2 && fail "installing $package; what it depends on: apt-get install -f"; }
}

# set_value FILE SECTION KEY VALUE: in a file that is written as the package's is, with its comments. A line that shows a
# default ("#: key = …") begins to hold; a key that is not shown is put below its section's name.
set_value() {
    SECTION=$2 KEY=$3 VALUE=$4 awk '
        BEGIN { section = ENVIRON["SECTION"]; key = ENVIRON["KEY"]; value = ENVIRON["VALUE"] }
        { plain = $0; sub(/^#: /, "", plain) }
        plain ~ /^\[[^]]*\]/ {
            if (inside && !done) { lines[head] = lines[head] "\n" key " = " value; done = 1 }
            name = plain; sub(/^\[/, "", name); sub(/\].*/, "", name)
            inside = (name == section)
            if (inside) { $0 = plain; head = NR; found = 1 }
        }
        inside && !done && index(plain, key) == 1 && substr(plain, length(key) + 1) ~ /^ *=/ {
            comment = match(plain, /  +#.*$/) ? substr(plain, RSTART) : ""
            $0 = key " = " value comment; done = 1
        }
        { lines[NR] = $0 }
        END {
            if (inside && !done) { lines[head] = lines[head] "\n" key " = " value }
            for (line = 1; line <= NR; line++) { print lines[line] }
            if (!found) { print "\n[" section "]\n" key " = " value }
        }' "$1" >"$1.new"
    mv "$1.new" "$1"
}

if [ -n "$package" ]; then
    if package_is_installed; then
        same "package $(dpkg-deb --field "$package" Version)"
    else
        change "package $(dpkg-deb --field "$package" Version)" install_package
    fi
fi
if ! command -v cellgate >/dev/null; then
    [ -n "$dry_run" ] || fail "cellgate is not installed: name its --package"
    printf 'the rest depends on the package, which is not installed yet\n'
    exit
fi

if [ -n "$broker_password" ]; then
    put "$broker_password" /etc/cellgate/mqtt-password root:cellgate 640
    settings+=(mqtt password-file '"/etc/cellgate/mqtt-password"')
fi
if [ -n "$broker_ca" ]; then
    put "$broker_ca" /etc/cellgate/broker-ca.pem root:cellgate 644
    settings+=(mqtt.tls ca '"/etc/cellgate/broker-ca.pem"')
fi
if [[ $broker =~ ^(.*):([0-9]+)$ ]]; then
    settings+=(mqtt host "$(toml_string "${BASH_REMATCH[1]}")" mqtt port "${BASH_REMATCH[2]}")
elif [ -n "$broker" ]; then
    settings+=(mqtt host "$(toml_string "$broker")" mqtt port "$([ -n "$broker_ca" ] && echo 8883 || echo 1883)")
fi
if [ "${#settings[@]}" -gt 0 ]; then
    cp "$config" "$work/config.toml"
    for ((at = 0; at < ${#settings[@]}; at += 3)); do
        set_value "$work/config.toml" "${settings[@]:at:3}"
    done
    cellgate run --config "$work/config.toml" --check >/dev/null || fail "these settings cannot be used; $config is as it was"
    [ -z "$dry_run" ] || diff -u --label "$config" --label "$config" "$config" "$work/config.toml" || true
    put "$work/config.toml" "$config" root:cellgate 640
fi

if [ -n "$model" ]; then
    cellgate model show "$model" >"$work/model.txt" || fail "$model cannot be used"
    put "$model" "$state/model.cgm" cellgate:cellgate 640
fi

enrol() {
    # Where the service's user can read it.
    install -o cellgate -m 600 "$keys" "$state/keys.cgk"
    as_cellgate cellgate update install "$state/keys.cgk" --trust --state "$state/update" || fail "enrolling $keys"
    rm -f "$state/keys.cgk"
}

if [ -n "$keys" ]; then
    if as_cellgate cellgate update status --state "$state/update" --json >"$work/status.json" 2>/dev/null; then
        same "keys: $(grep -o '"key-set":[0-9]*' "$work/status.json"); a newer set: cellgate update install"
    else
        change "the keys of updates" enrol
    fi
fi

# Some modes want a restart of the board and ask for it: the answer is no, and the mode holds from the next start on.
set_power_mode() { nvpmodel -m "$power_mode" <<<no; }

if [ -n "$power_mode" ]; then
    if ! command -v nvpmodel >/dev/null; then
        same "power mode: no nvpmodel on this board"
    elif [ "$(nvpmodel -q 2>/dev/null | tail -n 1)" = "$power_mode" ]; then
        same "power mode $power_mode"
    else
        change "power mode $power_mode" set_power_mode
    fi
fi

clocks_file=/etc/systemd/system/cellgate.service.d/clocks.conf
if [ "$clocks" = max ]; then
    if command -v jetson_clocks >/dev/null; then
        printf '%s\n' '# provision.sh --clocks max: the highest clocks for as long as the board runs.' '[Service]' \
            "ExecStartPre=+-$(command -v jetson_clocks)" >"$work/clocks.conf"
        [ -n "$dry_run" ] || mkdir -p "${clocks_file%/*}"
        put "$work/clocks.conf" "$clocks_file" root:root 644
    else
        same "clocks: no jetson_clocks on this board"
    fi
elif [ "$clocks" = auto ] && [ -e "$clocks_file" ]; then
    change "$clocks_file (clocks from the next start of the board on)" rm "$clocks_file"
fi

if [ -n "$start" ]; then
    if systemctl is-enabled --quiet cellgate 2>/dev/null; then
        same "the service is enabled"
    else
        change "the service is enabled" systemctl --quiet enable cellgate
    fi
    if running && [ "$changes" = 0 ]; then
        same "the service runs"
    elif [ -z "$dry_run" ]; then
        # A camera has one user: the doctor looks while the station rests.
        if [ -d /run/systemd/system ]; then
            systemctl daemon-reload
            systemctl stop cellgate
        fi
        as_cellgate cellgate doctor || fail "the doctor found what must be put right first; the service is not started"
        if [ -d /run/systemd/system ]; then
            changes=$((changes + 1))
            systemctl start cellgate
            printf 'change: the service is started\n'
        fi
    fi
fi
printf '%s changes%s\n' "$changes" "${dry_run:+ would be made}"
