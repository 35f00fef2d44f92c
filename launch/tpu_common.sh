# shellcheck shell=bash
# What tpu_vm.sh, tpu_pod.sh and tpu_multislice.sh share; sourced by them, on the machine that you rent TPUs from.
#
# Not run by us yet. Written for the gcloud of 2025 (compute tpus queued-resources and tpu-vm, general availability).
#
# A queued resource is created, and once it is active every host installs the package and starts the same command in a
# tmux session. The loop then asks each minute (POLL). Ended by 0, 1, 2 or 130. Any other exit code of the first host's
# command, 143 (preempted) and 75 (try again) above all, a host that has lost its session, or a slice that is gone: it
# starts again (on a new queued resource where the old one is gone). This script may be stopped and started again at any
# time: it finds what it has created. Stop it before you delete the queued resource, which it would ask for anew.
set -euo pipefail

: "${NAME:?the name of the queued resource, for example NAME=rmt}"
: "${ZONE:?the zone, for example ZONE=us-west4-a}"
: "${ACCELERATOR:?the slice, for example ACCELERATOR=v5litepod-16}"
: "${SOURCE:?where git finds this repository}"
: "${WORKDIR:?a folder that all hosts share, for example WORKDIR=/shared/rmt_s}"
RUNTIME=${RUNTIME:-v2-alpha-tpuv5-lite} # v4: tpu-ubuntu2204-base, v5p: v2-alpha-tpuv5, v6e: v2-alpha-tpuv6e
SPOT=${SPOT:-yes}                       # "no": on demand
SLICES=${SLICES:-1}
SETUP=${SETUP:-true} # run on every host before the installation, and again before each start: mount what is shared
TRIES=${TRIES:-5}    # gives up after so many ends without a new checkpoint, or failures to create or install, in a row
POLL=${POLL:-60}     # seconds between two looks

command -v gcloud >/dev/null || { echo "There is no gcloud here: https://cloud.google.com/sdk" >&2 && exit 2; }
[ $# -gt 0 ] || set -- --config configs/rmt_s.py
TRAIN=$(printf '%q ' "$@" --workdir "$WORKDIR")
COSTS="The TPUs still cost: remove them with gcloud compute tpus queued-resources delete $NAME --zone=$ZONE --force"

nodes() {
    if [ "$SLICES" -eq 1 ]; then echo "$NAME"; else seq -f "$NAME-%g" 0 $((SLICES - 1)); fi
}

on_hosts() { # NODE WORKER COMMAND; a host that answers no more must not hold up the loop
    gcloud compute tpus tpu-vm ssh "$1" --zone="$ZONE" --worker="$2" --command="$3" --quiet \
        --ssh-flag=-oConnectTimeout=30 --ssh-flag=-oServerAliveInterval=30 </dev/null
}

on_first() { # COMMAND: on the host of process 0
    on_hosts "$(nodes | head -n 1)" 0 "$1"
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

queue_state() { # NONE where there is no such queued resource, UNKNOWN where gcloud does not say: it may well be there
    local errors state
    errors=$(mktemp)
    if state=$(gcloud compute tpus queued-resources describe "$NAME" --zone="$ZONE" --format='value(state.state)' \
        2>"$errors"); then
        echo "${state:-UNKNOWN}"
    elif grep -q NOT_FOUND "$errors"; then
        echo NONE
    else
        cat "$errors" >&2
        echo UNKNOWN
    fi
    rm -f "$errors"
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
    local state failed=0
    while :; do
        state=$(queue_state)
        case $state in
            ACTIVE) return ;;
            NONE) create || failed=$((failed + 1)) ;;
            UNKNOWN | SUSPENDING | DELETING) ;;
            SUSPENDED) remove || true ;; # a preempted slice does not come back by itself
            FAILED)
                failed=$((failed + 1))
                remove || true
                ;;
            *) echo "$(date -u +%H:%M) $NAME: $state" ;;
        esac
        if [ "$failed" -ge "$TRIES" ]; then
            echo "The queued resource $NAME could not be created $failed times: see above." >&2
            return 1
        fi
        sleep "$POLL"
    done
}

install() { # uv, because the TPU images come with Python 3.10; a young VM may still be busy with apt itself
    on_all "( $SETUP ) && mkdir -p '$WORKDIR' && (test -d rmt || git clone --depth=1 '$SOURCE' rmt) && cd rmt \
        && (command -v tmux >/dev/null || sudo apt-get -o DPkg::Lock::Timeout=300 install -y tmux) \
        && python3 -m pip install --quiet --user uv && (test -d .venv || python3 -m uv venv --python 3.11) \
        && python3 -m uv pip install --quiet -e '.[tpu]'"
}

start() { # does nothing on hosts where it runs already
    # As a file, because the words then pass only one more shell, and can be looked at there. SIGHUP is ignored: at a
    # shutdown tmux goes at once, and the hang-up of its terminal would end Python before it has saved.
    local script="trap '' HUP; cd ~/rmt && .venv/bin/python main.py $TRAIN> ~/rmt.log 2>&1; echo \$? > ~/rmt.code"
    on_all "tmux has-session -t =rmt 2>/dev/null || { rm -f ~/rmt.code \
        && printf '%s\n' $(printf %q "$script") > ~/rmt.sh && tmux new-session -d -s rmt 'exec bash ~/rmt.sh'; }"
}

end_rest() { # where it still runs, `start` would do nothing; hosts end within seconds of each other, or hang
    on_all "for _ in \$(seq 60); do tmux has-session -t =rmt 2>/dev/null || exit 0; sleep 2; done; \
        kill -KILL -- -\$(tmux list-panes -t =rmt: -F '#{pane_pid}')"
}

exit_code() { # of the command on the first host, "lost" where it has left none; empty while it runs, or without answer
    local code='cat ~/rmt.code 2>/dev/null' # asked twice: it may appear just before the session ends
    on_first "$code || tmux has-session -t =rmt 2>/dev/null || $code || echo lost" 2>/dev/null \
        | tr -d '\r' | grep -xE '[0-9]+|lost' || true
}

latest_step() { # 0 without any; fails where the host does not answer
    local steps="ls '$WORKDIR/checkpoints' 2>/dev/null | grep -x '[0-9]*'" step
    step=$(on_first "$steps | sort -n | tail -n 1" | tr -d '\r') || return
    echo "${step:-0}"
}

train() {
    local code step last=-1 stuck=0 failed=0
    while :; do
        wait_until_active || return 1
        if ! { install && step=$(latest_step); }; then # the slice may go during the installation
            failed=$((failed + 1))
            if [ "$failed" -ge "$TRIES" ]; then
                echo "The installation failed $failed times in a row: see above. $COSTS" >&2
                return 1
            fi
            sleep "$POLL"
            continue
        fi
        failed=0
        # Looked at before a start, because a slice that is gone says nothing any more.
        if [ "$step" -gt "$last" ]; then stuck=0 last=$step; else stuck=$((stuck + 1)); fi
        if [ "$stuck" -ge "$TRIES" ]; then
            echo "Stopped $stuck times in a row without a new checkpoint: see ~/rmt.log on the hosts. $COSTS" >&2
            return 143
        fi
        if ! start; then # on some hosts it may run: the others must follow soon
            sleep "$POLL"
            continue
        fi
        code=''
        while [ -z "$code" ]; do
            sleep "$POLL"
            code=$(exit_code)
            case $(queue_state) in
                ACTIVE | UNKNOWN) ;;
                *) break ;;
            esac
        done
        case $code in
            0 | 1 | 2 | 130)
                on_first 'tail -n 40 ~/rmt.log' || true
                echo "Ended with exit code $code. $COSTS"
                return "$code"
                ;;
            '') echo "The slice is gone: asks for a new one." ;;
            *)
                echo "Ended with exit code $code: starts again."
                end_rest || true
                ;;
        esac
    done
}
