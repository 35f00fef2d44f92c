#!/usr/bin/env bash
# One TPU VM, such as a v5litepod-8 or v6e-8: creates it, installs, trains, starts again after a preemption.
#
#   NAME=rmt ZONE=us-west4-a SOURCE=https://... WORKDIR=/shared/rmt_s launch/tpu_vm.sh --config configs/rmt_s.py
#
# Not run by us yet. The other variables are in tpu_common.sh. On a Spot VM (the default) the workdir must outlive the
# VM: a mounted share or a data disk, see SETUP there.
ACCELERATOR=${ACCELERATOR:-v5litepod-8}
# shellcheck source=launch/tpu_common.sh
. "$(dirname "$0")/tpu_common.sh"
train
