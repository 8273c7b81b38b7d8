# shellcheck shell=bash
# What the batch scripts share; sourced by them, never run. docs/slurm.md tells how to use them and what each exit code leads to.
#
# A job goes: claim the run's folder → check the nodes, leave bad ones out → one rank per GPU → see how the ranks ended → done, start again
# inside the allocation, requeue, or stop. What it writes is in OUT/slurm/start-N/. What can be set is in slurm/site.sh.example.
set -uo pipefail

fail() { # CODE MESSAGE
  echo "error: $2" >&2
  exit "$1"
}

enter_project() { # sets project, PYTHON, HOST_PYTHON, and what the site file sets; goes to the folder of the submission
  project=$(cd "${PROJECT:-${SLURM_SUBMIT_DIR:-$PWD}}" && pwd) || exit 2
  SRUN_OPTIONS=() COMMAND_PREFIX=() NODE_CHECK_OPTIONS=()
  local site=${SITE:-$project/slurm/site.sh}
  if [[ -f $site ]]; then
    bash -n "$site" || fail 2 "the site file $site is no valid bash"
    set +u # what it sources (conda, modules, a vendor's variables) may read names that are not set
    # shellcheck disable=SC1090
    source "$site"
    set -u
  elif [[ -n ${SITE:-} ]]; then
    fail 2 "SITE=$SITE: there is no such file"
  fi
  if [[ -z ${PYTHON:-} ]]; then
    PYTHON=$project/.venv/bin/python
    [[ -x $PYTHON ]] || PYTHON=python3
  fi
  HOST_PYTHON=${HOST_PYTHON:-$PYTHON} # outside a container: for the small tools that read what the ranks wrote
  command -v "$HOST_PYTHON" >/dev/null || HOST_PYTHON=python3
  cd "${SLURM_SUBMIT_DIR:-$PWD}" || exit 2
}

require_job() { # EXAMPLE
  [[ -n ${SLURM_JOB_ID:-} ]] || fail 2 "this is a batch script; submit it from the root of the project: $1"
}

value_of() { # NAME ARGUMENTS...: prints the value of --NAME VALUE or --NAME=VALUE, the last one given; fails if there is none
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

lay_out() { # sets NODES, TRAIN_NODES, CPUS_PER_NODE, GPUS_PER_NODE, RANKS_PER_NODE, port
  mapfile -t NODES < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
  CPUS_PER_NODE=$(sed 's/([^)]*)//g; y/,/\n/' <<<"$SLURM_JOB_CPUS_PER_NODE" | sort -n | head -n 1) # 128(x15),64: that of the smallest
  GPUS_PER_NODE=${SLURM_GPUS_PER_NODE:-${SLURM_GPUS_ON_NODE:-0}} # an exclusive job has all of a node's GPUs, whatever it asked for
  GPUS_PER_NODE=${GPUS_PER_NODE##*:}                             # a100:8
  RANKS_PER_NODE=${RANKS_PER_NODE:-${SLURM_NTASKS_PER_NODE:-$GPUS_PER_NODE}}
  ((RANKS_PER_NODE)) || RANKS_PER_NODE=1
  TRAIN_NODES=${TRAIN_NODES:-${#NODES[@]}}
  ((TRAIN_NODES <= ${#NODES[@]})) ||
    fail 2 "TRAIN_NODES=$TRAIN_NODES, but the job has ${#NODES[@]} nodes; submit it with --nodes=$TRAIN_NODES or more"
  port=$((10000 + SLURM_JOB_ID % 200 * 100)) # a block of 100 below the ephemeral ports: two jobs on one host do not meet
  # what sbatch was asked for in other terms would contradict the options that srun is given here
  unset SLURM_CPUS_PER_GPU SLURM_CPUS_PER_TASK SLURM_MEM_PER_GPU SLURM_MEM_PER_CPU SLURM_MEM_PER_NODE SLURM_NTASKS SLURM_NPROCS \
    SLURM_NTASKS_PER_NODE SLURM_GPUS SLURM_GPUS_PER_NODE SLURM_GPUS_PER_TASK SLURM_TRES_PER_TASK SLURM_DISTRIBUTION \
    SLURM_EXPORT_ENV # of sbatch --export=NONE: the ranks would miss what the site file exports
}

address_of() { # NODE: its name, or the address that Slurm uses where the name does not resolve
  local address=""
  getent hosts "$1" >/dev/null || address=$(scontrol -o show node "$1" | sed -n 's/.* NodeAddr=\([^ ]*\).*/\1/p')
  echo "${address:-$1}"
}

on_nodes() { # TASKS_PER_NODE LOG NODE,NODE,... SRUN_OPTIONS... -- COMMAND...
  local per_node=$1 log=$2 list=$3 cpus nodes options=()
  shift 3
  while [[ $1 != -- ]]; do
    options+=("$1")
    shift
  done
  shift
  nodes=$(awk -F, '{print NF}' <<<"$list")
  cpus=$((CPUS_PER_NODE / per_node)) # since Slurm 22.05 srun does not take it from sbatch: a rank would get one core
  ((GPUS_PER_NODE)) && options+=(--gpus-per-node="$GPUS_PER_NODE")
  srun --nodes="$nodes" --nodelist="$list" --ntasks="$((nodes * per_node))" --ntasks-per-node="$per_node" \
    --cpus-per-task="$((cpus ? cpus : 1))" --mem=0 --output="$log" "${options[@]}" "${SRUN_OPTIONS[@]}" "${HERE[@]}" "$PWD" "$@"
}

# shellcheck disable=SC2016
HERE=(bash -c 'cd "$0" && exec "$@"') # a container's tasks begin in its image's own folder, and paths of the command line may be relative

wait_or_signal() { # PID: until it has ended, or a signal has set stopping
  while kill -0 "$1" 2>/dev/null && [[ -z $stopping ]]; do
    sleep 10 &>/dev/null & # a signal ends the wait, but for one that came just before it
    wait -n "$1" $! 2>/dev/null || true
  done
}

one_process() { # sets THROUGH: what stands before the command of a single process, in the environment of the ranks
  THROUGH=("${COMMAND_PREFIX[@]}")
  ((${#SRUN_OPTIONS[@]} == 0)) ||
    THROUGH=(srun --nodes=1 --ntasks=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" "${SRUN_OPTIONS[@]}" "${HERE[@]}" "$PWD" "${COMMAND_PREFIX[@]}")
}

become() { # COMMAND...: go on as this single process
  one_process
  exec "${THROUGH[@]}" "$@"
}

run_or_requeue() { # FOLDER COMMAND...: a single process that continues where it stopped. USR1, which comes before the time limit, puts the job back
  # into the queue, but for a start that brought no new *.parquet in FOLDER
  local folder=$1 child began
  shift
  one_process
  stopping="" began=$(date +%s)
  trap 'stopping=USR1' USR1
  "${THROUGH[@]}" "$@" &
  child=$!
  wait_or_signal "$child"
  if [[ -n $stopping ]] && kill -0 "$child" 2>/dev/null; then
    [[ -n $(find "$folder" -name '*.parquet' -newermt "@$began" -print -quit 2>/dev/null) ]] ||
      fail 1 "nothing was finished within the time limit: a longer sbatch --time, more --cpus-per-task, or a smaller --shard-clips"
    echo "the time limit is near"
    requeue
  fi
  wait "$child"
}

joined() {
  local IFS=,
  echo "$*"
}

# ---- the run's folder

claim() { # one job per run: two would write the same checkpoints
  [[ $OUT != *[\\$'\n']* ]] || fail 2 "--out $OUT: a backslash or a line break in the folder's name confuses srun; give another"
  mkdir -p "$OUT/slurm" || fail 3 "$OUT/slurm cannot be made"
  local holder=""
  [[ ! -f $OUT/slurm/job ]] || holder=$(<"$OUT/slurm/job")
  if [[ -n $holder && $holder != "$SLURM_JOB_ID" && -n $(squeue -h -j "$holder" -t RUNNING,SUSPENDED,STOPPED -o %i 2>/dev/null) ]]; then
    fail 2 "job $holder works in $OUT already; wait for it, end it (scancel $holder), or give another --out"
  fi
  echo "$SLURM_JOB_ID" >"$OUT/slurm/job" || fail 3 "$OUT/slurm cannot be written"
}

newest_step() { # step of the newest finished checkpoint, -1 without one
  local path newest=-1
  for path in "$OUT"/checkpoints/step-*/manifest.json; do
    [[ $path =~ /step-([0-9]+)/manifest\.json$ ]] && ((10#${BASH_REMATCH[1]} > newest)) && newest=$((10#${BASH_REMATCH[1]}))
  done
  echo "$newest"
}

next_start() { # CODE_BEFORE: sets START; ends the job with that code where start after start brings nothing
  local list=$OUT/slurm/starts.tsv step evaluated vain number
  step=$(newest_step)
  evaluated=$(find "$OUT/cache" -name '*.npz' 2>/dev/null | wc -l) # batches of an evaluation, which continues too
  [[ -f $list ]] || printf 'start\tjob\trestarts\ttime\tstep\tevaluated\n' >"$list" || fail 3 "$list cannot be written"
  vain=$(awk -F'\t' -v job="$SLURM_JOB_ID" -v step="$step" -v evaluated="$evaluated" '$2 == job && $5 == step && $6 == evaluated' "$list" | wc -l)
  ((vain < ${MAX_STARTS:-3})) || fail "$1" "$vain starts of job $SLURM_JOB_ID brought no checkpoint newer than step $step and nothing evaluated, so it is not started \
again. See $OUT/slurm/start-*, mend the cause and submit the same command anew; MAX_STARTS (now ${MAX_STARTS:-3}) allows more starts"
  number=$(wc -l <"$list")
  printf '%s\t%s\t%s\t%s\t%s\t%s\n' "$number" "$SLURM_JOB_ID" "${SLURM_RESTART_COUNT:-0}" "$(date +%FT%T)" "$step" "$evaluated" >>"$list"
  printf -v START '%s/slurm/start-%04d' "$OUT" "$number"
  mkdir -p "$START/check" "$START/ranks" || fail 3 "$START cannot be made"
  echo "start $number in $OUT: job $SLURM_JOB_ID on $SLURM_JOB_NODELIST, requeued ${SLURM_RESTART_COUNT:-0} times, newest checkpoint: step $step"
}

# ---- nodes

check_nodes() { # COMMAND...: sets USE, the nodes to work on; a job with too few good ones goes back into the queue without the bad ones. Fails
  # where no node is to blame, and another check may go better; ends the job where it cannot
  USE=("${NODES[@]:0:TRAIN_NODES}")
  ((${NODE_CHECK:-1})) || return 0
  local folder=$START/check node good bad options code
  for node in "${NODES[@]}"; do
    printf '%s %s\n' "$node" "$(address_of "$node")"
  done >"$folder/nodes"
  options=(--folder "$folder" --nodes "$folder/nodes" --gpus "$GPUS_PER_NODE" --port "$port" "${NODE_CHECK_OPTIONS[@]}")
  on_nodes 1 "${folder//%/%%}/node-%t.log" "$(joined "${NODES[@]}")" --kill-on-bad-exit=0 --time="${NODE_CHECK_MINUTES:-5}" -- \
    "${COMMAND_PREFIX[@]}" "$PYTHON" "$project/tools/node_check.py" run "${options[@]}" -- "$@" 2>"$folder/srun.err"
  for node in "${NODES[@]}"; do
    [[ -e $folder/$node.json ]] || { head -n 20 "$folder/srun.err" >&2 && break; }
  done
  "$HOST_PYTHON" "$project/tools/node_check.py" judge "${options[@]}" || {
    code=$?
    [[ $code == [23] && -z $stopping ]] || return 1
    exit "$code"
  }
  mapfile -t good <"$folder/good"
  mapfile -t bad <"$folder/bad"
  USE=("${good[@]:0:TRAIN_NODES}")
  ((${#USE[@]} == TRAIN_NODES)) || leave_without "${bad[@]}"
  ((${#bad[@]} == 0)) || echo "going on without ${bad[*]}: ${#good[@]} nodes are good, $TRAIN_NODES are needed"
}

leave_without() { # NODES...: back into the queue, with these excluded; a running job cannot change its nodes, one that is held can
  local known
  known=$(scontrol -o show job "$SLURM_JOB_ID" | sed -n 's/.* ExcNodeList=\([^ ]*\).*/\1/p')
  [[ $known != "(null)" ]] || known=""
  echo "back into the queue without $*"
  trap '' TERM # Slurm ends this shell while the next two lines are still to be said
  scontrol requeuehold "$SLURM_JOB_ID" || fail 1 "the job cannot be requeued; submit it again with --exclude=$(joined "$@")"
  scontrol update JobId="$SLURM_JOB_ID" ExcNodeList="${known:+$known,}$(joined "$@")"
  scontrol release "$SLURM_JOB_ID"
  exit 75
}

# ---- ranks

run_ranks() { # PROGRAM ARGUMENTS...: one rank per GPU of USE; returns the exit code of the rank that failed first
  local ranks=$START/ranks srun tail
  MASTER_ADDR=$(address_of "${USE[0]}")
  MASTER_PORT=$((port + 64 + 10#${START##*-} % 36)) # another one for every start: the one before may still be closing
  export MASTER_ADDR MASTER_PORT
  on_nodes "$RANKS_PER_NODE" "${ranks//%/%%}/rank-%t.log" "$(joined "${USE[@]}")" --kill-on-bad-exit=1 -- \
    bash "$project/slurm/rank.sh" "$ranks" "${COMMAND_PREFIX[@]}" "$PYTHON" "$@" &
  srun=$!
  tail -n +1 -F --pid="$srun" "$ranks/rank-0.log" 2>/dev/null &
  tail=$!
  wait_or_signal "$srun"
  [[ -z $stopping ]] || pass_on "$srun"
  wait "$srun"
  wait "$tail"
  "$HOST_PYTHON" "$project/tools/first_error.py" "$ranks" --ranks "$((${#USE[@]} * RANKS_PER_NODE))"
}

pass_on() { # SRUN: Slurm signals this shell only (--signal=B:); the ranks are told until they have saved and left, since one that is still
  # importing ignores it. One that still evaluates when the time is up has not saved: the job goes back into the queue all the same
  local end
  end=$(end_of_job)
  while kill -0 "$1" 2>/dev/null; do
    if [[ $stopping == USR1 && -n $end ]] && (($(date +%s) >= end - LAST_S)); then
      echo "the time is up and the ranks have not saved (a long evaluation?): they continue from the newest checkpoint"
      requeue
    fi
    [[ $stopping != USR1 ]] || scancel --signal=USR1 "$SLURM_JOB_ID" 2>/dev/null
    sleep 5 &
    wait -n "$1" $! 2>/dev/null
  done
}

LAST_S=10 # seconds before the time limit: pass_on looks every 5

end_of_job() { # prints when the time limit ends this job, in seconds since 1970; nothing where there is none
  local shown
  shown=$(scontrol -o show job "$SLURM_JOB_ID" | sed -n 's/.* EndTime=\([^ ]*\).*/\1/p')
  date -d "$shown" +%s 2>/dev/null
}

requeue() { # after the ranks have saved: the same job again, on whatever nodes are free
  echo "back into the queue"
  scontrol requeue "$SLURM_JOB_ID" || fail 75 "the job cannot be requeued; submit the same command again, it continues"
  sleep 600 & # Slurm ends this shell
  wait $!
  exit 75
}

run_job() { # OUT PROGRAM ARGUMENTS...: the whole of a job; never returns
  OUT=$1 stopping=""
  shift
  [[ $OUT == /* ]] || OUT=$PWD/$OUT
  local code=1 since checked
  trap 'stopping=USR1' USR1
  trap 'stopping=TERM' TERM
  lay_out
  claim
  while :; do
    next_start "$code"
    checked=1
    check_nodes "$@" || checked=0
    [[ $stopping != TERM ]] || exit 143
    [[ -z $stopping ]] || requeue
    if ((!checked)); then
      code=1
      echo "checking the nodes again"
      sleep "${RESTART_DELAY_S:-10}"
      continue
    fi
    since=$SECONDS
    run_ranks "$@"
    code=$?
    echo "the ranks ended with $code after $((SECONDS - since)) s"
    [[ $stopping != TERM ]] || exit "$code" # cancelled, preempted or requeued by someone else: Slurm decides what follows
    case $code in
      0 | 2 | 3 | 4) exit "$code" ;; # done, or nothing that another start would mend
      75) requeue ;;
    esac
    [[ -z $stopping ]] || requeue # the time limit is near, too near for another start
    echo "starting again inside the allocation"
    sleep "${RESTART_DELAY_S:-10}"
  done
}

run_script() { # SCRIPT ARGUMENTS...: run_job for a script that the user names, in the folder after --out, else runs/NAME
  [[ -f ${1:-} ]] || fail 2 "give the script to run first, for example finetune/msrvtt_retrieval.py; got ${1:-nothing}"
  local script=$1 out
  shift
  out=$(value_of out "$@") || { out=runs/$(basename "$script" .py) && set -- "$@" --out "$out"; }
  run_job "$out" "$script" "$@"
}
