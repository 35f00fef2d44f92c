#!/usr/bin/env bash
# Runs a training command again for as long as it ends with 143 (saved after SIGTERM, SIGUSR1 or the platform's notice)
# or 75 (try again: a process of the run is lost, or another machine still holds the workdir's lock).
#
#   launch/restart.sh [-n TRIES] [-d SECONDS] WORKDIR COMMAND [ARGUMENT...]
#   launch/restart.sh /shared/rmt_s python main.py --config configs/rmt_s.py --workdir /shared/rmt_s
#
#   -n TRIES     give up after so many ends in a row without a new checkpoint in WORKDIR (default 3)
#   -d SECONDS   wait so long before each new start (default 10), six times as long after 75
#
# Any other exit code is passed on: 0 done, 1 stopped by an error of the run, 2 bad input, 130 Ctrl-C. A signal that
# this script itself gets goes on to the command, and there is no new start after it.
#
# Tested in tests/test_launch.py: with real runs that get SIGTERM.
set -u

usage() {
    sed -n '2,12s/^# \{0,1\}//p' "$0" >&2
    exit 2
}

tries=3 delay=10
while getopts n:d: option; do
    case $option in
        n) tries=$OPTARG ;;
        d) delay=$OPTARG ;;
        *) usage ;;
    esac
done
shift $((OPTIND - 1))
[ $# -ge 2 ] || usage
case $tries$delay in *[!0-9]*) usage ;; esac
workdir=$1
shift

latest_step() { # the newest checkpoint, 0 without any
    local newest=0 folder name
    for folder in "$workdir"/checkpoints/*/; do
        name=$(basename "$folder")
        case $name in *[!0-9]*) continue ;; esac
        [ "$name" -gt "$newest" ] && newest=$name
    done
    echo "$newest"
}

signal='' child=''
forward() {
    signal=$1
    [ -z "$child" ] || kill -s "$1" "$child" 2>/dev/null
}
for name in TERM INT USR1 QUIT; do
    # shellcheck disable=SC2064 # the name of now is meant
    trap "forward $name" "$name"
done
trap 'forward TERM' HUP # the terminal is gone: the run is to be saved first

stuck=0
while :; do
    before=$(latest_step)
    # In a session of its own: Ctrl-C goes to all processes of a terminal, and a second one, forwarded from here, would
    # end the run without saving. Background commands of a script ignore Ctrl-C unless it is given back to them.
    (trap - INT QUIT TERM USR1 HUP && exec setsid "$@") </dev/null &
    child=$!
    [ -z "$signal" ] || forward "$signal" # it came before there was a child
    while kill -0 "$child" 2>/dev/null; do
        wait "$child" # a signal ends `wait`, not the command
    done
    wait "$child" # bash keeps the exit code
    code=$?
    child=''
    case $code in
        143) what=preempted pause=$delay ;;
        # What went wrong takes its time to pass: the lock of a dead machine on NFS lives for a minute or two.
        75) what='ended with 75' pause=$((6 * delay)) ;;
        *) exit "$code" ;;
    esac
    [ -z "$signal" ] || exit "$code"
    step=$(latest_step)
    if [ "$step" -gt "$before" ]; then stuck=0; else stuck=$((stuck + 1)); fi
    if [ "$stuck" -ge "$tries" ]; then
        echo "restart.sh: ended with 143 or 75 $stuck times in a row without a new checkpoint in $workdir (last: step" \
            "$step). Look why it is stopped, or checkpoint more often: --config.checkpoint.every_steps." >&2
        exit "$code"
    fi
    echo "restart.sh: $what at step $step, starts again in $pause s" >&2
    sleep "$pause" &
    wait $!
    if [ -n "$signal" ]; then
        kill $! 2>/dev/null
        exit "$code"
    fi
done
