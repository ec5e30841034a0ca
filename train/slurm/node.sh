#!/bin/bash
# What train.sbatch starts on each node: torchrun, and by it a trainer for each GPU.
#
#   node.sh HOST:PORT [key=value ...]
#
# HOST:PORT is where the launchers of all nodes meet.

set -euo pipefail

RENDEZVOUS=$1
shift

# torchrun does not pass USR1 on, it would die of it. The shell ignores the signal and its children inherit that, so
# the launcher stays; the trainers install their own handler, which replaces what they inherited.
trap '' USR1

# The interface that leads to another node of the job.
interface_between_nodes() {
    local name address
    for name in $(scontrol show hostnames "$SLURM_JOB_NODELIST"); do
        if [[ $name != "$SLURMD_NODENAME" ]]; then
            read -r address _ < <(getent ahostsv4 "$name")
            ip -o route get "$address" | sed -n 's/.* dev \([^ ]*\).*/\1/p'
            return
        fi
    done
}

# gloo binds to the address of the host's name. On some clusters that is the loopback, where no other node gets through.
if [[ $SLURM_JOB_NUM_NODES -gt 1 && -z ${GLOO_SOCKET_IFNAME:-} && $(getent ahostsv4 "$(uname -n)") == 127.* ]]; then
    INTERFACE=$(interface_between_nodes || true)
    if [[ -n $INTERFACE && $INTERFACE != lo ]]; then
        export GLOO_SOCKET_IFNAME=$INTERFACE
    else
        echo "$SLURMD_NODENAME: this host's name leads to the loopback; set GLOO_SOCKET_IFNAME (see train.sbatch)" >&2
    fi
fi

exec torchrun \
    --nnodes="$SLURM_JOB_NUM_NODES" --nproc-per-node="${SLURM_GPUS_ON_NODE:-8}" --node-rank="$SLURM_NODEID" \
    --rdzv-backend=c10d --rdzv-endpoint="$RENDEZVOUS" --rdzv-id="$SLURM_JOB_ID" \
    train/main.py "$@"
