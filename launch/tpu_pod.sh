#!/usr/bin/env bash
# A pod slice, all its hosts: creates it, installs, trains, starts again after a preemption.
#
#   NAME=rmt ZONE=us-west4-a ACCELERATOR=v5litepod-256 SOURCE=https://... WORKDIR=/shared/rmt_s \
#     SETUP='sudo apt-get install -y nfs-common && sudo mkdir -p /shared &&
#       (mountpoint -q /shared || sudo mount 10.0.0.2:/share /shared)' \
#     launch/tpu_pod.sh --config configs/rmt_s.py
#
# Not run by us yet. The other variables are in tpu_common.sh. SETUP runs again before each start, where the share is
# mounted already. gcloud reaches several hosts at once with a key that ssh-agent holds:
# ssh-add ~/.ssh/google_compute_engine. The hosts find each other by themselves.
# shellcheck source=launch/tpu_common.sh
. "$(dirname "$0")/tpu_common.sh"
train
