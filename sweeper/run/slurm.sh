# From here on it is the same for every sweep. What Ray needs is this job's own: its token, which
# stands in the environment alone, its ports, and its folder on each node.
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
mapfile -t nodes <<<"$hosts"
export RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$(head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n')
export RAY_AUTH_TOKEN
export RAY_TMPDIR="/tmp/sweeper-job-$SLURM_JOB_ID"
export MALLOC_ARENA_MAX=1
port=$((20000 + SLURM_JOB_ID % 4000 * 3))
steps=()
driver=

# shellcheck disable=SC2329 # a trap calls it
stop() {
  code=$?
  trap - EXIT
  trap '' INT TERM
  if [ -n "$driver" ]; then kill "$driver" 2>/dev/null || true; fi
  if [ "${#steps[@]}" -gt 0 ]; then kill "${steps[@]}" 2>/dev/null || true; fi
  wait
  exit "$code"
}
trap stop EXIT
trap 'kill -INT "$driver" 2>/dev/null || exit 143' INT TERM # the sweep ends as Ctrl-C ends it

fail() {
  printf 'sweeper slurm: %s\n' "$1" >&2
  exit 1
}

# The address of the first node that the others see, which a node's own name is not everywhere.
ip=$(getent ahostsv4 "${nodes[0]}" | awk '$1 !~ /^127\./ && !found++ { print $1 }' || true)
ip=${ip:-$(hostname -I | awk '{ print $1 }')}
export RAY_ADDRESS="$ip:$port"

# shellcheck disable=SC2016 # it is a program for the nodes
program='mkdir -m 700 "$RAY_TMPDIR" 2>/dev/null || [ -O "$RAY_TMPDIR" ] || exit 1
unset RAY_ADDRESS; exec ray start --block "$@"'

ray_on() { # a node, then what its `ray start` gets more
  srun --export=ALL --overlap --nodes=1 --ntasks=1 --nodelist="$1" \
    --cpus-per-task="$SLURM_CPUS_PER_TASK" bash -c "$program" ray "${@:2}" \
    --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="$gpus" --min-worker-port=0 --max-worker-port=0 \
    --dashboard-agent-listen-port=0 --disable-usage-stats &
  steps+=("$!")
}

wait_for() { # so many nodes, or the end of the job
  local deadline=$((SECONDS + patience)) found=0 step
  while [ "$found" -lt "$1" ]; do
    for step in "${steps[@]}"; do
      kill -0 "$step" 2>/dev/null || fail "Ray ended on a node; its last words are above"
    done
    if [ "$SECONDS" -ge "$deadline" ]; then
      fail "after $patience s Ray has $found of $1 nodes: look for one that is slow or cannot be \
reached, and submit the job again; SWEEPER_NODES_SECONDS=1800 waits longer"
    fi
    sleep 1
    found=$(ray status --address "$RAY_ADDRESS" 2>/dev/null | grep -c '^ 1 node_' || true)
  done
}

patience=${SWEEPER_NODES_SECONDS:-600}
ray_on "${nodes[0]}" --head --node-ip-address="$ip" --port="$port" \
  --ray-client-server-port="$((port + 1))" --dashboard-port="$((port + 2))" \
  --dashboard-host=127.0.0.1
wait_for 1
for node in "${nodes[@]:1}"; do
  ray_on "$node" --address="$RAY_ADDRESS"
done
wait_for "${#nodes[@]}"

set -m # else what runs beside a script ignores SIGINT
sweeper run "${words[@]}" &
driver=$!
set +m
while true; do
  code=0
  wait "$driver" || code=$?
  kill -0 "$driver" 2>/dev/null || break # else a signal came in between
done
driver=
exit "$code"
