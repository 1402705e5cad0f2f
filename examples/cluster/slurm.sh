#!/usr/bin/env bash
#SBATCH --job-name=subnet-search
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-task=4
#SBATCH --time=04:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#
# sbatch examples/cluster/slurm.sh recipe.toml        (submitted again, the same line goes on)
# Ray on the nodes of one job; the search runs on the first one. The submit folder lies on storage that all nodes share.
set -euo pipefail

recipe=${1:?usage: sbatch slurm.sh RECIPE}
export OMP_NUM_THREADS=1
RAY_AUTH_TOKEN=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n') # others on these machines stay out; srun hands it on
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN
port=6379
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}

start() { # start NODE ARGUMENTS...: Ray on one node, until the job ends
    srun --nodes=1 --ntasks=1 --nodelist="$1" ray start "${@:2}" --num-cpus="$SLURM_CPUS_PER_TASK" \
        --num-gpus="${SLURM_GPUS_PER_TASK:-0}" --block &
}

start "$head" --head --port="$port"
sleep 10
for node in "${nodes[@]:1}"; do
    start "$node" --address="$head:$port"
done
sleep 10

# TERM comes two minutes before the time is up: the search stops, and keeps what it has
subnet-search run "$recipe" --out runs --ray-address "$head:$port" \
    --workers $((SLURM_JOB_NUM_NODES * 4)) --gpus-per-worker 1 &
search=$!
trap 'kill -TERM "$search"' TERM
wait "$search" || { wait "$search" || true; scontrol requeue "$SLURM_JOB_ID"; }
