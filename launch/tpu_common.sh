# shellcheck shell=bash
# What tpu_vm.sh, tpu_pod.sh and tpu_multislice.sh share; sourced by them, on the machine that you rent TPUs from.
#
# Not run by us yet. Written for the gcloud of 2025 (compute tpus queued-resources and tpu-vm, general availability).
#
# A queued resource is created, and once it is active every host installs the package and starts the same command in a
# tmux session. The loop then asks each minute (POLL): the command's exit code 143, or a slice that is gone, means preempted,
# and it starts again (on a new queued resource where the old one is gone). Ended by 0, 1, 2 or 130. This script may be
# stopped and started again at any time: it finds what it has created.
set -euo pipefail

: "${NAME:?the name of the queued resource, for example NAME=rmt}"
: "${ZONE:?the zone, for example ZONE=us-west4-a}"
: "${ACCELERATOR:?the slice, for example ACCELERATOR=v5litepod-16}"
: "${SOURCE:?where git finds this repository}"
: "${WORKDIR:?a folder that all hosts share, for example WORKDIR=/shared/rmt_s}"
RUNTIME=${RUNTIME:-v2-alpha-tpuv5-lite} # v4: tpu-ubuntu2204-base, v5p: v2-alpha-tpuv5, v6e: v2-alpha-tpuv6e
SPOT=${SPOT:-yes}                       # "no": on demand
SLICES=${SLICES:-1}
SETUP=${SETUP:-true} # run on every host before the installation: mount what is shared
TRIES=${TRIES:-5}    # preemptions in a row without a new checkpoint before giving up
POLL=${POLL:-60}   # seconds between two looks
TRAIN=${*:---config configs/rmt_s.py}

nodes() {
    if [ "$SLICES" -eq 1 ]; then echo "$NAME"; else seq -f "$NAME-%g" 0 $((SLICES - 1)); fi
}

on_hosts() { # NODE WORKER COMMAND
    gcloud compute tpus tpu-vm ssh "$1" --zone="$ZONE" --worker="$2" --command="$3"
}

on_all() { # COMMAND: on every host of every slice at once
    local node job jobs=() failed=0
    for node in $(nodes); do
        on_hosts "$node" all "$1" &
        jobs+=($!)
    done
    for job in "${jobs[@]}"; do wait "$job" || failed=1; done
    return "$failed"
}

queue_state() { # empty where there is no such queued resource
    gcloud compute tpus queued-resources describe "$NAME" --zone="$ZONE" --format='value(state.state)' 2>/dev/null || true
}

create() {
    local flags=(--zone="$ZONE" --accelerator-type="$ACCELERATOR" --runtime-version="$RUNTIME")
    if [ "$SLICES" -eq 1 ]; then
        flags+=(--node-id="$NAME")
    else
        flags+=(--node-count="$SLICES" --node-prefix="$NAME")
    fi
    [ "$SPOT" = no ] || flags+=(--spot)
    gcloud compute tpus queued-resources create "$NAME" "${flags[@]}"
}

remove() {
    gcloud compute tpus queued-resources delete "$NAME" --zone="$ZONE" --force --quiet
}

wait_until_active() {
    local state
    while :; do
        state=$(queue_state)
        case $state in
            ACTIVE) return ;;
            '') create ;;
            SUSPENDING | DELETING) ;;
            SUSPENDED | FAILED) remove ;; # a preempted slice does not come back by itself
            *) echo "$(date -u +%H:%M) $NAME: $state" ;;
        esac
        sleep "$POLL"
    done
}

install() { # uv, because the TPU images come with Python 3.10
    on_all "$SETUP && mkdir -p '$WORKDIR' && (test -d rmt || git clone --depth=1 '$SOURCE' rmt) && cd rmt \
        && (command -v tmux >/dev/null || sudo apt-get install -y tmux) && python3 -m pip install --quiet --user uv \
        && (test -d .venv || python3 -m uv venv --python 3.11) && python3 -m uv pip install --quiet -e '.[tpu]'"
}

start() { # does nothing on hosts where it runs already
    local run="cd ~/rmt && .venv/bin/python main.py $TRAIN --workdir $WORKDIR > ~/rmt.log 2>&1; echo \$? > ~/rmt.code"
    on_all "tmux has-session -t rmt 2>/dev/null || { rm -f ~/rmt.code; tmux new-session -d -s rmt \"${run//\$/\\\$}\"; }"
}

exit_code() { # of the command on the first host; empty while it runs, or where the host is gone
    on_hosts "$(nodes | head -n 1)" 0 'cat ~/rmt.code 2>/dev/null' 2>/dev/null | tr -d '\r' || true
}

latest_step() {
    on_hosts "$(nodes | head -n 1)" 0 "ls '$WORKDIR/checkpoints' 2>/dev/null | grep -x '[0-9]*' | sort -n | tail -n 1" \
        2>/dev/null || true
}

train() {
    local code step last=0 stuck=0
    while :; do
        wait_until_active
        if ! { install && start; }; then # the slice may go during the installation
            sleep "$POLL"
            continue
        fi
        code=''
        while [ -z "$code" ] && [ "$(queue_state)" = ACTIVE ]; do
            sleep "$POLL"
            code=$(exit_code)
        done
        case $code in
            0 | 1 | 2 | 130)
                on_hosts "$(nodes | head -n 1)" 0 'tail -n 40 ~/rmt.log'
                echo "Ended with exit code $code. The TPUs still cost: remove them with gcloud compute tpus" \
                    "queued-resources delete $NAME --zone=$ZONE --force"
                return "$code"
                ;;
        esac
        step=$(latest_step)
        if [ "${step:-0}" -gt "$last" ]; then stuck=0 last=$step; else stuck=$((stuck + 1)); fi
        if [ "$stuck" -ge "$TRIES" ]; then
            echo "Stopped $stuck times in a row without a new checkpoint: see ~/rmt.log on the hosts." >&2
            return 143
        fi
        echo "Preempted after step ${step:-$last}: starts again."
    done
}
