# shellcheck shell=bash
# Shared by all scripts: finds Python and the GPUs, turns variables into flags, prints the command and runs it.
#
# A script sets its variables, sources this file and calls run_sft, run_kd or run_eval with its own arguments, which
# are appended to the flags. Relative paths are relative to the repository's root, where everything runs.
#
#   DRY_RUN=1       print the command only, and accept models and data that are not there yet
#   DOCTOR=1        examine the run and report, and do not train (docs/preflight.md)
#   PYTHON          default: .venv/bin/python where it exists, else python
#   GPUS            processes of a node, one a GPU; default: the visible GPUs; 0: one process on the CPU
#   DEVICE=cpu      leave the GPUs alone; GPUS is then the number of CPU processes
#   NNODES          nodes; default: the hosts of HOSTFILE, else 1
#   HOSTFILE        DeepSpeed's list of hosts ("worker-1 slots=8" a line): one node starts all of them, over ssh
#   NODE_RANK, MASTER_ADDR, MASTER_PORT
#                   without HOSTFILE: run the script on every node, with its rank and the address of node 0
#   CUDA_VISIBLE_DEVICES
#                   which GPUs of a node
#
# Every variable becomes a flag (`pass` below); one that is not set, the default of that flag (code/arguments.py).

CALLER_DIR=$PWD
BASE_PATH=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$BASE_PATH" || exit

fail() {
    printf '%s: %s\n' "$0" "$*" >&2
    exit 1
}

dry_run() { [[ ${DRY_RUN:-0} == 1 ]]; }

# require_number VAR LEAST HINT
require_number() {
    [[ ${!1} =~ ^[0-9]+$ && ${!1} -ge $2 ]] || fail "$1=${!1}: pass a whole number, $2 or more; $3"
}

visible_gpus() {
    if ! command -v nvidia-smi >/dev/null; then
        echo 0
    elif [[ -z ${CUDA_VISIBLE_DEVICES+set} ]]; then
        nvidia-smi -L 2>/dev/null | grep -c '^GPU ' || true
    elif [[ $CUDA_VISIBLE_DEVICES =~ ^(-1|NoDevFiles)?$ ]]; then
        echo 0
    else
        awk -F, '{ print NF }' <<<"$CUDA_VISIBLE_DEVICES"
    fi
}

port_is_taken() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

default_python() { if [[ -x .venv/bin/python ]]; then echo .venv/bin/python; else echo python; fi; }

count_hosts() {
    [[ -f $1 ]] || fail "HOSTFILE=$1: no such file; write one line a host, such as 'worker-1 slots=8'"
    grep -c '^[[:space:]]*[^#[:space:]]' "$1" || fail "HOSTFILE=$1: no host in it"
}

PYTHON=${PYTHON:-$(default_python)}
# EPOCHS=1 for EPOCH=1 would do nothing, in silence.
if command -v "$PYTHON" >/dev/null; then "$PYTHON" -S scripts/lib/variables.py || exit; fi
DEVICE=${DEVICE:-cuda}
HOSTFILE=${HOSTFILE:-}
NODE_RANK=${NODE_RANK:-0}
MASTER_ADDR=${MASTER_ADDR:-}
[[ $DEVICE == cuda || $DEVICE == cpu ]] || fail "DEVICE=$DEVICE: pass cuda or cpu"
if [[ -z ${GPUS:-} && $DEVICE == cpu ]]; then GPUS=0; fi
if [[ -z ${GPUS:-} ]]; then GPUS=$(visible_gpus); fi
if [[ -z ${NNODES:-} && -n $HOSTFILE ]]; then NNODES=$(count_hosts "$HOSTFILE"); fi
NNODES=${NNODES:-1}
require_number GPUS 0 "which GPUs is for CUDA_VISIBLE_DEVICES"
require_number NNODES 1 "one node is NNODES=1"

# Nodes must agree on the port; runs that share a node must not.
if [[ -z ${MASTER_PORT:-} && $NNODES -gt 1 ]]; then MASTER_PORT=29500; fi
while [[ -z ${MASTER_PORT:-} ]] || { [[ -n ${drawn:-} ]] && port_is_taken "$MASTER_PORT"; }; do
    drawn=1 MASTER_PORT=$((20000 + RANDOM % 10000))
done
require_number NODE_RANK 0 "node 0 is the one at MASTER_ADDR"
if [[ $GPUS -eq 0 ]]; then DEVICE=cpu; fi
# PyTorch then asks for large pages: on a CPU a step spends a tenth of its time on getting memory page by page.
export THP_MEM_ALLOC_ENABLE=${THP_MEM_ALLOC_ENABLE:-1}
PROCESSES=$((GPUS > 0 ? GPUS : 1)) # of one node

# run_printed COMMAND...: prints the command and, except in a dry run, runs it in the foreground.
run_printed() {
    printf '%q ' "$@"
    printf '\n'
    if dry_run; then return; fi
    command -v "$PYTHON" >/dev/null || fail "PYTHON=$PYTHON: not found; create .venv, or set PYTHON"
    "$@"
}

# launch ENTRY FLAGS...: runs ENTRY on all processes.
launch() {
    local command=()
    # DeepSpeed takes a GPU that it sees, so a run on the CPU hides them.
    if [[ $DEVICE == cpu && $(visible_gpus) -gt 0 ]]; then
        command+=(env CUDA_VISIBLE_DEVICES= DS_ACCELERATOR=cpu)
    fi
    # As modules of $PYTHON, deepspeed and torchrun need no activated environment.
    command+=("$PYTHON")
    if [[ ${DOCTOR:-0} == 1 && $1 == code/distillation.py ]]; then
        shift
        local ranks=(env "WORLD_SIZE=$((PROCESSES * NNODES))" "LOCAL_WORLD_SIZE=$PROCESSES")
        run_printed "${ranks[@]}" "${command[@]}" code/doctor.py "$@"
        return
    fi
    if [[ -n $HOSTFILE ]]; then
        [[ $DEVICE == cuda ]] || fail "HOSTFILE=$HOSTFILE: only for GPUs; set GPUS, or use NODE_RANK and MASTER_ADDR"
        # pdsh hands the words to a shell of each host, between single quotes.
        [[ "$*" != *\'* ]] || fail "HOSTFILE=$HOSTFILE: no path or value may have a single quote; rename it"
        command+=(-m deepspeed.launcher.runner --hostfile "$HOSTFILE" --num_nodes "$NNODES" --num_gpus "$GPUS")
        command+=(--master_port "$MASTER_PORT")
        if [[ -n $MASTER_ADDR ]]; then command+=(--master_addr "$MASTER_ADDR"); fi
    elif [[ $NNODES -gt 1 ]]; then
        [[ -n $MASTER_ADDR ]] || fail "NNODES=$NNODES: set MASTER_ADDR (node 0) and NODE_RANK, or set HOSTFILE"
        [[ $NODE_RANK -lt $NNODES ]] || fail "NODE_RANK=$NODE_RANK: the last of NNODES=$NNODES is $((NNODES - 1))"
        command+=(-m torch.distributed.run --nnodes "$NNODES" --node_rank "$NODE_RANK" --nproc_per_node "$PROCESSES")
        command+=(--master_addr "$MASTER_ADDR" --master_port "$MASTER_PORT")
    elif [[ $DEVICE == cuda && -z ${CUDA_VISIBLE_DEVICES:-} ]]; then
        command+=(-m deepspeed.launcher.runner --num_gpus "$GPUS" --master_port "$MASTER_PORT")
    elif [[ $DEVICE == cuda || $PROCESSES -gt 1 ]]; then
        # deepspeed --num_gpus ignores CUDA_VISIBLE_DEVICES; torchrun respects it.
        command+=(-m torch.distributed.run --nproc_per_node "$PROCESSES")
        command+=(--master_addr 127.0.0.1 --master_port "$MASTER_PORT")
    fi
    if [[ " ${command[*]} " == *"$MASTER_PORT"* && -z $HOSTFILE && $NODE_RANK -eq 0 ]] && ! dry_run &&
        port_is_taken "$MASTER_PORT"; then
        fail "MASTER_PORT=$MASTER_PORT: another process has it; set it to a free port, or leave it unset"
    fi
    run_printed "${command[@]}" "$@"
}

# ---- flags: only what is set is passed on; defaults live in code/arguments.py ----------------------------------------

# pass FLAG VAR [FLAG VAR...]: appends each flag whose variable is set to something to the caller's `flags`.
pass() {
    while [[ $# -gt 0 ]]; do
        if [[ -n ${!2:-} ]]; then flags+=("$1" "${!2}"); fi
        shift 2
    done
}

# turn_on FLAG VAR: appends the flag, if the variable is 1.
turn_on() {
    [[ ${!2:-0} =~ ^[01]$ ]] || fail "$2=${!2}: pass 1 or 0"
    if [[ ${!2:-0} == 1 ]]; then flags+=("$1"); fi
}

pass_generation() {
    turn_on --do-sample DO_SAMPLE
    pass --top-p TOP_P --top-k TOP_K --temperature TEMPERATURE
}

pass_training() {
    # A number of micro-batches or of tokens replaces the recipe's GLOBAL_BATCH. One from the environment stays, and
    # training refuses what contradicts it.
    if [[ -n ${GRAD_ACC:-}${TOKENS_PER_MICRO_BATCH:-} ]] && ! printenv GLOBAL_BATCH >/dev/null; then GLOBAL_BATCH=; fi
    pass --model-type CKPT_TYPE --ckpt-name CKPT_NAME --model-path CKPT_PATH
    if [[ ${LORA_RANK:-0} != 0 ]]; then
        flags+=(--peft lora)
        pass --peft-lora-r LORA_RANK --peft-lora-alpha LORA_ALPHA --peft-lora-dropout LORA_DROPOUT
    fi
    pass --peft-path PEFT_PATH
    turn_on --gradient-checkpointing GRADIENT_CHECKPOINTING
    pass --data-dir DATA_DIR --train-num TRAIN_NUM --dev-num DEV_NUM
    pass --max-length MAX_LENGTH --max-prompt-length MAX_PROMPT_LENGTH
    pass --batch-size BATCH_SIZE --global-batch-size GLOBAL_BATCH --gradient-accumulation-steps GRAD_ACC
    pass --tokens-per-micro-batch TOKENS_PER_MICRO_BATCH --eval-batch-size EVAL_BATCH_SIZE
    pass --num-epochs EPOCH --total-iters TOTAL_ITERS --seed SEED
    pass --lr LR --lr-min LR_MIN --lr-decay-style LR_DECAY_STYLE --warmup-ratio WARMUP_RATIO
    pass --weight-decay WEIGHT_DECAY --clip-grad CLIP_GRAD
    pass --log-interval LOG_INTERVAL --save-interval SAVE_INTERVAL --eval-interval EVAL_INTERVAL
    pass --keep-best-n-checkpoints KEEP_BEST --save-dir SAVE_DIR
    turn_on --eval-gen EVAL_GEN
    pass_generation
    pass --precision PRECISION --deepspeed_config DS_CONFIG
}

# ---- entries ---------------------------------------------------------------------------------------------------------

# run_sft FLAGS...: supervised fine-tuning of CKPT_PATH on DATA_DIR.
run_sft() {
    local flags=(--criterion cross_entropy)
    pass_training
    launch code/distillation.py "${flags[@]}" "$@"
}

# run_kd FLAGS...: distils TEACHER_MODEL_PATH (with TEACHER_PEFT_PATH merged in) into CKPT_PATH by KD_OBJ. Without a
# divergence to a teacher it is the SFT run, and lands in the SFT run's folder.
run_kd() {
    local flags=()
    if [[ $KD_OBJ == cross_entropy || $KD_OBJ == sft ]]; then
        run_sft "$@"
        return
    fi
    pass_training
    pass --teacher-ckpt-name TEACHER_MODEL_NAME --teacher-model-path TEACHER_MODEL_PATH
    pass --teacher-peft-path TEACHER_PEFT_PATH --teacher-cache TEACHER_CACHE
    pass --kd-objective KD_OBJ --kd-rate KD_RATE --kd-temperature KD_TEMP --adakd-base ADAKD_BASE
    launch code/distillation.py "${flags[@]}" "$@"
}

# run_eval CKPT_PATH [BATCH] FLAGS...: answers every data set with every seed. CKPT_PATH, a checkpoint or a run, is
# relative to where the script was called, or to the repository.
run_eval() {
    [[ $# -ge 1 ]] || fail "pass the checkpoint: bash $0 CKPT_PATH [BATCH] [FLAGS...]"
    local ckpt=$1 folder sets found=() seeds flags=()
    shift
    if [[ $# -ge 1 && $1 != -* ]]; then
        EVAL_BATCH_SIZE=$1
        require_number EVAL_BATCH_SIZE 1 "BATCH is the prompts of a batch on one GPU"
        shift
    fi
    if [[ -e $CALLER_DIR/$ckpt ]]; then ckpt=$CALLER_DIR/$ckpt; fi
    if [[ -n ${BASE_MODEL_PATH:-} ]]; then # of an adapter; without it the one that the adapter names
        flags+=(--model-path "$BASE_MODEL_PATH" --peft-path "$ckpt")
    else
        flags+=(--model-path "$ckpt")
    fi

    IFS=: read -r -a sets <<<"$DATA_DIRS"
    for folder in "${sets[@]}"; do
        if [[ -f $folder/${SPLIT:-valid}.jsonl ]] || dry_run; then
            found+=("$folder")
        else
            echo "skipped: $folder/${SPLIT:-valid}.jsonl is not there" >&2
        fi
    done
    if [[ ${#found[@]} -gt 0 ]]; then
        flags+=(--data-dir "${found[@]}")
    elif printenv DATA_DIRS >/dev/null; then
        fail "DATA_DIRS=$DATA_DIRS: none of them is there; see data/README.md"
    else
        echo "none of the data sets is there (data/README.md): the run is evaluated on its own" >&2
    fi
    read -r -a seeds <<<"$SEEDS"
    flags+=(--seeds "${seeds[@]}")
    pass --split SPLIT --eval-num EVAL_NUM --eval-batch-size EVAL_BATCH_SIZE
    pass --max-length MAX_LENGTH --max-prompt-length MAX_PROMPT_LENGTH
    pass_generation
    launch code/evaluate.py "${flags[@]}" "$@"
}
