#!/bin/bash
# Legacy: the Cloud TPU API is frozen; use jobset where you can.
set -u
ssh="gcloud compute tpus tpu-vm ssh sweep --zone=us-east5-b --worker=all"
create() {
  gcloud compute tpus queued-resources create sweep \
    --node-id=sweep --zone=us-east5-b \
    --accelerator-type=v5litepod-16 --runtime-version=tpu-ubuntu2204-base \
    --spot
}
# A preempted TPU VM has to be deleted and queued for anew.
again() {
  until $ssh --command="cd audiorank && $1"; do
    code=$?
    if [ "$code" -ge 1 ] && [ "$code" -le 41 ]; then return "$code"; fi
    state=$(gcloud compute tpus tpu-vm describe sweep --zone=us-east5-b --format='value(state)')
    if [ "$state" != READY ]; then
      gcloud compute tpus queued-resources delete sweep --zone=us-east5-b --force --quiet
      create
    fi
    sleep 60
  done
}
create
again 'AUDIORANK_DISTRIBUTED=1 python3 -m launch.train --workdir=/data/sweeps/one/0123456789ab'
again 'AUDIORANK_DISTRIBUTED=1 python3 -m launch.train --workdir=/data/sweeps/one/ba9876543210'
