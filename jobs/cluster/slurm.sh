#!/usr/bin/env bash
# A sweep as a SLURM job: Ray's head and the driver on the first node, a Ray node on each other one.
#
#   sbatch jobs/cluster/slurm.sh          from the top folder of the repository
#
# Edit:
#   EDIT_PARTITION          partition
#   EDIT_SHARED             shared folder for shards and sweeps, for example /scratch/me/distsynth
# and the sizes below, and the sweep's arguments. The repository with its .venv, and EDIT_SHARED,
# must be on a file system that every node sees.
#
# Out of time, preempted by requeueing, or with the first node lost, the job goes back into the
# queue, and --resume continues the sweep. When another node is lost, each trial on it continues
# from its last checkpoint on the nodes that are left, up to --retries times.

#SBATCH --job-name=distsynth-sweep
#SBATCH --partition=EDIT_PARTITION
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=4
#SBATCH --mem=128G
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --no-kill
# To this script alone, three minutes before the end.
#SBATCH --signal=B:USR1@180

set -euo pipefail

storage=EDIT_SHARED
export PATH="$SLURM_SUBMIT_DIR/.venv/bin:$PATH"
cd "$SLURM_SUBMIT_DIR"

# srun does not take this over from sbatch since SLURM 22.05.
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
head_ip=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --all-ip-addresses)
head_ip=${head_ip%% *}

# Nodes may be shared: ports, temporary folder and token are this job's own.
port=$((20000 + SLURM_JOB_ID % 4000 * 3))
export RAY_ADDRESS=$head_ip:$port
export RAY_TMPDIR=/tmp/distsynth-$SLURM_JOB_ID
export RAY_AUTH_MODE=token
export RAY_AUTH_TOKEN_PATH=$storage/ray-token-$SLURM_JOB_ID
export RAY_USAGE_STATS_ENABLED=0 RAY_USAGE_STATS_REPORT_URL=http://127.0.0.1:9
mkdir -p "$storage"
rm -f "$RAY_AUTH_TOKEN_PATH"
(
    umask 077
    od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$RAY_AUTH_TOKEN_PATH"
)

steps=()
driver=
timer=
again=
# On USR1 Tune saves the sweep's state and ends; not when it is past the search, say.
stop_driver() {
    again=yes
    [[ -n $driver ]] && kill -USR1 "$driver" 2>/dev/null || return 0
    { sleep 90 && kill -KILL "$driver"; } >/dev/null 2>&1 &
    timer=$!
}
trap stop_driver USR1
trap '[[ -z $driver ]] || kill -TERM "$driver" 2>/dev/null || true' TERM INT
finish() {
    trap '' USR1 TERM INT
    rm -f "$RAY_AUTH_TOKEN_PATH"
    [[ -z $timer ]] || kill "$timer" 2>/dev/null || true
    if ((${#steps[@]} > 0)); then
        # srun then ends its step, and with it all that Ray started there.
        kill -TERM "${steps[@]}" 2>/dev/null || true
        wait "${steps[@]}" || true
    fi
    timeout 30 srun --nodes=${#nodes[@]} --ntasks=${#nodes[@]} rm -rf "$RAY_TMPDIR" || true
}
trap finish EXIT

options=(
    --block --disable-usage-stats
    --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="${SLURM_GPUS_ON_NODE:-0}"
    --dashboard-agent-listen-port=$((port + 2)) --min-worker-port=0 --max-worker-port=0
)
srun --nodes=1 --ntasks=1 --nodelist="$head" \
    ray start --head --node-ip-address="$head_ip" --port="$port" \
    --dashboard-host=127.0.0.1 --dashboard-port=$((port + 1)) "${options[@]}" &
steps+=($!)
for ((attempt = 1; ; attempt++)); do
    ray status --address="$RAY_ADDRESS" >/dev/null 2>&1 && break
    if ((attempt == 60)) || ! kill -0 "${steps[0]}" 2>/dev/null; then
        echo "Ray's head did not start on $head" >&2
        exit 1
    fi
    sleep 2
done
# A worker that is lost must not end the step of the others.
if ((${#nodes[@]} > 1)); then
    srun --nodes=$((${#nodes[@]} - 1)) --ntasks=$((${#nodes[@]} - 1)) --exclude="$head" \
        --no-kill --kill-on-bad-exit=0 --wait=0 \
        ray start --address="$RAY_ADDRESS" "${options[@]}" &
    steps+=($!)
fi

cat <<END
dashboard: ssh -L 8265:127.0.0.1:$((port + 1)) $head, then http://127.0.0.1:8265
token:     $RAY_AUTH_TOKEN_PATH
END

status=0
if [[ -z $again ]]; then
    python jobs/tune_gan.py unet-7 --name lambdas \
        --storage "$storage/sweeps" --data.shards "$storage/shards" \
        --space loss-weights learning-rates --trials 100 --search optuna --scheduler asha \
        --cpus 4 --gpus 1 --workers 1 --resume &
    driver=$!
    [[ -z $again ]] || stop_driver # the signal came just before
    wait "$driver" || status=$?
    # A trapped signal ends `wait` early.
    while kill -0 "$driver" 2>/dev/null; do
        status=0
        wait "$driver" || status=$?
    done
fi

if [[ -n $again ]]; then
    trap - EXIT
    finish
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
