#!/usr/bin/env bash
# Several slices as one run: as tpu_pod.sh, with SLICES of them in one queued resource.
#
#   NAME=rmt ZONE=us-west4-a ACCELERATOR=v5litepod-256 SLICES=2 SOURCE=https://... WORKDIR=/shared/rmt_s \
#     SETUP='...' launch/tpu_multislice.sh --config configs/rmt_s.py
#
# Not run by us yet. The other variables are in tpu_common.sh, SETUP and ssh-agent as in tpu_pod.sh. The platform tells
# the slices of each other (MEGASCALE_... variables); mesh.data goes over all slices, mesh.fsdp stays within one. All
# slices are preempted as one.
SLICES=${SLICES:-2}
# shellcheck source=launch/tpu_common.sh
. "$(dirname "$0")/tpu_common.sh"
train
