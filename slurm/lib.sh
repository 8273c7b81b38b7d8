# shellcheck shell=bash
# Functions shared by the batch scripts, which source this file. docs/slurm.md explains their use
# and what each exit code leads to.
#
# Course of a job: claim the run folder → check the nodes and leave out bad ones → start one rank
# per GPU → find the first error → finish, restart inside the allocation, requeue, or stop. Each
# start writes into OUT/slurm/start-N/. slurm/site.sh.example lists all settings.
set -uo pipefail

# Exit codes, from allinone/common/exit_codes.py (a test compares them).
# shellcheck disable=SC2034
readonly EXIT_OK=0 EXIT_FAILURE=1 EXIT_USAGE=2 EXIT_DISK_FULL=3 EXIT_NON_FINITE=4 EXIT_HANG=5 \
  EXIT_REQUEUE=75
readonly EXIT_SIGTERM=143 # 128 + 15, as bash reports it

fail() { # CODE MESSAGE
  echo "error: $2" >&2
  exit "$1"
}

# require_numbers NAME...: fail unless every one of these variables that is set is a number. bash runs
# the commands in a text that it evaluates as arithmetic: TRAIN_NODES='PATH[$(command)]'.
require_numbers() {
  local name
  for name in "$@"; do
    [[ ${!name:-0} =~ ^(0|[1-9][0-9]{0,8})$ ]] ||
      fail "$EXIT_USAGE" "$name=${!name}: give a number"
  done
}

# Set project, PYTHON, HOST_PYTHON and the site file's variables; change to the submission folder.
enter_project() {
  project=$(cd "${PROJECT:-${SLURM_SUBMIT_DIR:-$PWD}}" && pwd) || exit "$EXIT_USAGE"
  SRUN_OPTIONS=() COMMAND_PREFIX=() NODE_CHECK_OPTIONS=()
  local site=${SITE:-$project/slurm/site.sh}
  if [[ -f $site ]]; then
    bash -n "$site" || fail "$EXIT_USAGE" "the site file $site is not valid bash"
    set +u # conda, modules and vendor scripts may read unset variables
    # shellcheck disable=SC1090
    source "$site"
    set -u
  elif [[ -n ${SITE:-} ]]; then
    fail "$EXIT_USAGE" "SITE=$SITE: no such file"
  fi
  if [[ -z ${PYTHON:-} ]]; then
    PYTHON=$project/.venv/bin/python
    [[ -x $PYTHON ]] || PYTHON=python3
  fi
  # Runs outside a container: for the small tools that read the ranks' output.
  HOST_PYTHON=${HOST_PYTHON:-$PYTHON}
  command -v "$HOST_PYTHON" >/dev/null || HOST_PYTHON=python3
  cd "${SLURM_SUBMIT_DIR:-$PWD}" || exit "$EXIT_USAGE"
}

require_job() { # EXAMPLE
  [[ -n ${SLURM_JOB_ID:-} ]] ||
    fail "$EXIT_USAGE" "this is a batch script; submit it from the root of the project: $1"
  require_numbers SLURM_JOB_ID TRAIN_NODES RANKS_PER_NODE NODE_CHECK MAX_STARTS
}

# option_value NAME ARGUMENTS...: print the value of the last --NAME VALUE or --NAME=VALUE; fail if
# there is none.
option_value() {
  local name=$1 value="" found=1
  shift
  while (($#)); do
    case $1 in
      "--$name") (($# > 1)) && value=$2 found=0 ;;
      "--$name="*) value=${1#*=} found=0 ;;
    esac
    shift
  done
  ((found)) || printf '%s\n' "$value"
  return "$found"
}

# Set NODES, TRAIN_NODES, CPUS_PER_NODE, GPUS_PER_NODE, RANKS_PER_NODE and port.
read_allocation() {
  mapfile -t NODES < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
  # 128(x15),64 → the smallest, 64
  CPUS_PER_NODE=$(sed 's/([^)]*)//g; y/,/\n/' <<<"$SLURM_JOB_CPUS_PER_NODE" | sort -n | head -n 1)
  # An exclusive job is given all GPUs of a node, but should use as many as it asked for.
  GPUS_PER_NODE=${SLURM_GPUS_PER_NODE:-${SLURM_GPUS_ON_NODE:-0}}
  GPUS_PER_NODE=${GPUS_PER_NODE##*:} # a100:8 → 8
  RANKS_PER_NODE=${RANKS_PER_NODE:-${SLURM_NTASKS_PER_NODE:-$GPUS_PER_NODE}}
  require_numbers CPUS_PER_NODE GPUS_PER_NODE RANKS_PER_NODE TRAIN_NODES SLURM_JOB_ID NODE_CHECK \
    MAX_STARTS
  ((RANKS_PER_NODE)) || RANKS_PER_NODE=1
  TRAIN_NODES=${TRAIN_NODES:-${#NODES[@]}}
  ((TRAIN_NODES <= ${#NODES[@]})) || fail "$EXIT_USAGE" \
    "TRAIN_NODES=$TRAIN_NODES, but the job has ${#NODES[@]} nodes; submit it with \
--nodes=$TRAIN_NODES or more"
  # 100 ports per job, below the ephemeral ports, so that two jobs on a host use different ones.
  port=$((10000 + SLURM_JOB_ID % 200 * 100))
  # These describe the sbatch request in other terms and would contradict the options of srun.
  # SLURM_EXPORT_ENV (of sbatch --export=NONE) would hide the site file's exports from the ranks.
  unset SLURM_CPUS_PER_GPU SLURM_CPUS_PER_TASK SLURM_MEM_PER_GPU SLURM_MEM_PER_CPU \
    SLURM_MEM_PER_NODE SLURM_NTASKS SLURM_NPROCS SLURM_NTASKS_PER_NODE SLURM_GPUS \
    SLURM_GPUS_PER_NODE SLURM_GPUS_PER_TASK SLURM_TRES_PER_TASK SLURM_DISTRIBUTION SLURM_EXPORT_ENV
}

# address_of NODE: print its name, or the address that Slurm uses if the name does not resolve.
address_of() {
  local address=""
  getent hosts "$1" >/dev/null ||
    address=$(scontrol -o show node "$1" | sed -n 's/.* NodeAddr=\([^ ]*\).*/\1/p')
  echo "${address:-$1}"
}

# run_on_nodes TASKS_PER_NODE LOG NODE,NODE,... SRUN_OPTIONS... -- COMMAND...
run_on_nodes() {
  local per_node=$1 log=$2 list=$3 cpus nodes options=()
  shift 3
  while [[ $1 != -- ]]; do
    options+=("$1")
    shift
  done
  shift
  nodes=$(awk -F, '{print NF}' <<<"$list")
  # Since Slurm 22.05, srun does not take this from sbatch: each rank would get one core.
  cpus=$((CPUS_PER_NODE / per_node))
  ((GPUS_PER_NODE)) && options+=(--gpus-per-node="$GPUS_PER_NODE")
  srun --nodes="$nodes" --nodelist="$list" --ntasks="$((nodes * per_node))" \
    --ntasks-per-node="$per_node" --cpus-per-task="$((cpus ? cpus : 1))" --mem=0 --output="$log" \
    "${options[@]}" "${SRUN_OPTIONS[@]}" "${IN_FOLDER[@]}" "$PWD" "$@"
}

# Tasks in a container start in the image's folder, but paths on the command line may be relative.
# shellcheck disable=SC2016
IN_FOLDER=(bash -c 'cd "$0" && exec "$@"')

# wait_or_signal PID: return when the process has ended or a trap has set `stopping`.
wait_or_signal() {
  while kill -0 "$1" 2>/dev/null && [[ -z $stopping ]]; do
    sleep 10 &>/dev/null & # bounds the wait if the signal arrives just before it
    wait -n "$1" $! 2>/dev/null || true
  done
}

# Set PREFIX: the start of a command line that runs one process in the environment of the ranks.
set_single_process_prefix() {
  PREFIX=("${COMMAND_PREFIX[@]}")
  ((${#SRUN_OPTIONS[@]} == 0)) ||
    PREFIX=(srun --nodes=1 --ntasks=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}"
      "${SRUN_OPTIONS[@]}" "${IN_FOLDER[@]}" "$PWD" "${COMMAND_PREFIX[@]}")
}

exec_single() { # COMMAND...: replace this shell by one process
  set_single_process_prefix
  exec "${PREFIX[@]}" "$@"
}

# run_or_requeue FOLDER COMMAND...: run one process that can continue its work in a later start. On
# USR1, which precedes the time limit, requeue the job, unless this start added no *.parquet to
# FOLDER.
run_or_requeue() {
  local folder=$1 child start
  shift
  set_single_process_prefix
  stopping="" start=$(date +%s)
  trap 'stopping=USR1' USR1
  "${PREFIX[@]}" "$@" &
  child=$!
  wait_or_signal "$child"
  if [[ -n $stopping ]] && kill -0 "$child" 2>/dev/null; then
    [[ -n $(find "$folder" -name '*.parquet' -newermt "@$start" -print -quit 2>/dev/null) ]] ||
      fail "$EXIT_FAILURE" "no shard was finished within the time limit; use a longer sbatch \
--time, more --cpus-per-task, or a smaller --shard-clips"
    echo "the time limit is near"
    requeue
  fi
  wait "$child"
}

join_by_comma() {
  local IFS=,
  echo "$*"
}

# ---- the run folder

claim_run_folder() { # one job per run: two jobs would write the same checkpoints
  [[ $OUT != *[\\$'\n']* ]] ||
    fail "$EXIT_USAGE" "--out $OUT: srun does not support a backslash or line break in the name"
  mkdir -p "$OUT/slurm" || fail "$EXIT_DISK_FULL" "cannot create $OUT/slurm"
  local holder="" states=RUNNING,SUSPENDED,STOPPED
  [[ ! -f $OUT/slurm/job ]] || holder=$(<"$OUT/slurm/job")
  if [[ -n $holder && $holder != "$SLURM_JOB_ID" &&
    -n $(squeue -h -j "$holder" -t "$states" -o %i 2>/dev/null) ]]; then
    fail "$EXIT_USAGE" "job $holder is already running in $OUT; wait for it, cancel it \
(scancel $holder), or give another --out"
  fi
  echo "$SLURM_JOB_ID" >"$OUT/slurm/job" || fail "$EXIT_DISK_FULL" "cannot write to $OUT/slurm"
}

newest_step() { # print the step of the newest finished checkpoint, -1 without one
  local path newest=-1
  for path in "$OUT"/checkpoints/step-*/manifest.json; do
    [[ $path =~ /step-([0-9]+)/manifest\.json$ ]] && ((10#${BASH_REMATCH[1]} > newest)) &&
      newest=$((10#${BASH_REMATCH[1]}))
  done
  echo "$newest"
}

# record_start PREVIOUS_CODE: set START; end the job with PREVIOUS_CODE after MAX_STARTS starts
# without progress.
record_start() {
  local list=$OUT/slurm/starts.tsv max=${MAX_STARTS:-3} step evaluated fruitless number
  step=$(newest_step)
  # Evaluations continue too: each evaluated batch is a file.
  evaluated=$(find "$OUT/cache" -name '*.npz' 2>/dev/null | wc -l)
  [[ -f $list ]] || printf 'start\tjob\trestarts\ttime\tstep\tevaluated\n' >"$list" ||
    fail "$EXIT_DISK_FULL" "cannot write $list"
  fruitless=$(awk -F'\t' -v job="$SLURM_JOB_ID" -v step="$step" -v evaluated="$evaluated" \
    '$2 == job && $5 == step && $6 == evaluated' "$list" | wc -l)
  ((fruitless < max)) || fail "$1" \
    "$fruitless starts of job $SLURM_JOB_ID produced no checkpoint after step $step and \
nothing evaluated, so it is not started again. See $OUT/slurm/start-*, fix the cause and submit the \
same command again; MAX_STARTS (now $max) allows more starts"
  number=$(wc -l <"$list")
  printf '%s\t%s\t%s\t%s\t%s\t%s\n' "$number" "$SLURM_JOB_ID" "${SLURM_RESTART_COUNT:-0}" \
    "$(date +%FT%T)" "$step" "$evaluated" >>"$list"
  printf -v START '%s/slurm/start-%04d' "$OUT" "$number"
  mkdir -p "$START/check" "$START/ranks" || fail "$EXIT_DISK_FULL" "cannot create $START"
  echo "start $number in $OUT: job $SLURM_JOB_ID on $SLURM_JOB_NODELIST, requeued \
${SLURM_RESTART_COUNT:-0} times, newest checkpoint: step $step"
}

# ---- nodes

# check_nodes COMMAND...: set USE, the nodes to train on. Requeues the job without the bad nodes if
# too few are good. Fails if no single node is at fault and another check may pass; ends the job if
# another check cannot pass.
check_nodes() {
  USE=("${NODES[@]:0:TRAIN_NODES}")
  ((${NODE_CHECK:-1})) || return 0
  local folder=$START/check node good bad options code
  for node in "${NODES[@]}"; do
    printf '%s %s\n' "$node" "$(address_of "$node")"
  done >"$folder/nodes"
  options=(--folder "$folder" --nodes "$folder/nodes" --gpus "$GPUS_PER_NODE" --port "$port"
    "${NODE_CHECK_OPTIONS[@]}")
  # --output replaces % patterns, so % in the folder name is doubled
  run_on_nodes 1 "${folder//%/%%}/node-%t.log" "$(join_by_comma "${NODES[@]}")" \
    --kill-on-bad-exit=0 --time="${NODE_CHECK_MINUTES:-5}" -- \
    "${COMMAND_PREFIX[@]}" "$PYTHON" "$project/tools/node_check.py" run "${options[@]}" -- "$@" \
    2>"$folder/srun.err"
  for node in "${NODES[@]}"; do
    [[ -e $folder/$node.json ]] || { head -n 20 "$folder/srun.err" >&2 && break; }
  done
  "$HOST_PYTHON" "$project/tools/node_check.py" judge "${options[@]}" || {
    code=$?
    [[ ($code == "$EXIT_USAGE" || $code == "$EXIT_DISK_FULL") && -z $stopping ]] || return 1
    exit "$code"
  }
  mapfile -t good <"$folder/good"
  mapfile -t bad <"$folder/bad"
  USE=("${good[@]:0:TRAIN_NODES}")
  ((${#USE[@]} == TRAIN_NODES)) || requeue_excluding "${bad[@]}"
  ((${#bad[@]} == 0)) ||
    echo "continuing without ${bad[*]}: ${#good[@]} nodes are good, $TRAIN_NODES are needed"
}

# requeue_excluding NODES...: requeue the job without these nodes. Slurm changes the node list of a
# held job only, not of a running one.
requeue_excluding() {
  local known
  known=$(scontrol -o show job "$SLURM_JOB_ID" | sed -n 's/.* ExcNodeList=\([^ ]*\).*/\1/p')
  [[ $known != "(null)" ]] || known=""
  echo "requeueing the job without $*"
  trap '' TERM # requeuehold ends this shell, but two commands must follow
  scontrol requeuehold "$SLURM_JOB_ID" || fail "$EXIT_FAILURE" \
    "the job cannot be requeued; submit it again with --exclude=$(join_by_comma "$@")"
  scontrol update JobId="$SLURM_JOB_ID" ExcNodeList="${known:+$known,}$(join_by_comma "$@")"
  scontrol release "$SLURM_JOB_ID"
  exit "$EXIT_REQUEUE"
}

# ---- ranks

# run_ranks PROGRAM ARGUMENTS...: one rank per GPU of USE; returns the exit code of the rank that
# failed first.
run_ranks() {
  local ranks=$START/ranks srun tail
  MASTER_ADDR=$(address_of "${USE[0]}")
  # a new port for each start: the previous one may not be released yet
  MASTER_PORT=$((port + 64 + 10#${START##*-} % 36))
  export MASTER_ADDR MASTER_PORT
  run_on_nodes "$RANKS_PER_NODE" "${ranks//%/%%}/rank-%t.log" "$(join_by_comma "${USE[@]}")" \
    --kill-on-bad-exit=1 -- \
    bash "$project/slurm/rank.sh" "$ranks" "${COMMAND_PREFIX[@]}" "$PYTHON" "$@" &
  srun=$!
  tail -n +1 -F --pid="$srun" "$ranks/rank-0.log" 2>/dev/null &
  tail=$!
  wait_or_signal "$srun"
  [[ -z $stopping ]] || forward_signal "$srun"
  wait "$srun"
  wait "$tail"
  "$HOST_PYTHON" "$project/tools/first_error.py" "$ranks" \
    --ranks "$((${#USE[@]} * RANKS_PER_NODE))"
}

LAST_S=10 # seconds before the time limit at which forward_signal requeues; it looks every 5 s

# forward_signal SRUN_PID: Slurm signals this shell only (--signal=B:), so forward USR1 to the ranks
# until they have saved and left. It is repeated because a rank that is still importing ignores it.
# Ranks that are still in an evaluation when the time is up have not saved: requeue the job anyway.
forward_signal() {
  local end
  end=$(end_of_job)
  while kill -0 "$1" 2>/dev/null; do
    if [[ $stopping == USR1 && -n $end ]] && (($(date +%s) >= end - LAST_S)); then
      echo "the time is up and the ranks have not saved (a long evaluation?): they continue from \
the newest checkpoint"
      requeue
    fi
    [[ $stopping != USR1 ]] || scancel --signal=USR1 "$SLURM_JOB_ID" 2>/dev/null
    sleep 5 &
    wait -n "$1" $! 2>/dev/null
  done
}

end_of_job() { # print the end of the time limit in seconds since 1970; nothing if there is none
  local shown
  shown=$(scontrol -o show job "$SLURM_JOB_ID" | sed -n 's/.* EndTime=\([^ ]*\).*/\1/p')
  date -d "$shown" +%s 2>/dev/null
}

requeue() { # after the ranks have saved: the same job again, on any free nodes
  echo "requeueing the job"
  scontrol requeue "$SLURM_JOB_ID" || fail "$EXIT_REQUEUE" \
    "the job cannot be requeued; submit the same command again, it continues"
  sleep 600 & # Slurm ends this shell
  wait $!
  exit "$EXIT_REQUEUE"
}

run_job() { # OUT PROGRAM ARGUMENTS...: run a job from start to end; never returns
  OUT=$1 stopping=""
  shift
  [[ $OUT == /* ]] || OUT=$PWD/$OUT
  local code=$EXIT_FAILURE since checked
  trap 'stopping=USR1' USR1
  trap 'stopping=TERM' TERM
  read_allocation
  claim_run_folder
  while :; do
    record_start "$code"
    checked=1
    check_nodes "$@" || checked=0
    [[ $stopping != TERM ]] || exit "$EXIT_SIGTERM"
    [[ -z $stopping ]] || requeue
    if ((!checked)); then
      code=$EXIT_FAILURE
      echo "checking the nodes again"
      sleep "${RESTART_DELAY_S:-10}"
      continue
    fi
    since=$SECONDS
    run_ranks "$@"
    code=$?
    echo "the ranks ended with $code after $((SECONDS - since)) s"
    # after scancel, preemption or a requeue by someone else, Slurm decides what follows
    [[ $stopping != TERM ]] || exit "$code"
    case $code in
      "$EXIT_OK" | "$EXIT_USAGE" | "$EXIT_DISK_FULL" | "$EXIT_NON_FINITE")
        exit "$code" # finished, or another start would not help
        ;;
      "$EXIT_REQUEUE") requeue ;;
    esac
    [[ -z $stopping ]] || requeue # the time limit is too near for another start
    echo "starting again inside the allocation"
    sleep "${RESTART_DELAY_S:-10}"
  done
}

# run_script SCRIPT ARGUMENTS...: run_job for a script that the user names, in the folder of --out,
# by default runs/NAME.
run_script() {
  [[ -f ${1:-} ]] || fail "$EXIT_USAGE" \
    "give the script to run first, for example finetune/msrvtt_retrieval.py; got ${1:-nothing}"
  local script=$1 out
  shift
  out=$(option_value out "$@") ||
    { out=runs/$(basename "$script" .py) && set -- "$@" --out "$out"; }
  run_job "$out" "$script" "$@"
}
