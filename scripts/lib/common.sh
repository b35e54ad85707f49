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

CALLER_DIR=$PWD
BASE_PATH=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$BASE_PATH" || exit

fail() {
    printf '%s: %s\n' "$0" "$*" >&2
    exit 1
}

dry_run() { [[ ${DRY_RUN:-0} == 1 ]]; }

# Complains about a path that is not there; a dry run goes on with the path as it is.
missing() { dry_run || fail "$@"; }

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

default_python() { if [[ -x .venv/bin/python ]]; then echo .venv/bin/python; else echo python; fi; }

count_hosts() {
    [[ -f $1 ]] || fail "HOSTFILE=$1: no such file; write one line a host, such as 'worker-1 slots=8'"
    grep -c '^[[:space:]]*[^#[:space:]]' "$1" || fail "HOSTFILE=$1: no host in it"
}

PYTHON=${PYTHON:-$(default_python)}
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
port_is_taken() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

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

# ---- lengths and generation: training and evaluation agree -----------------------------------------------------------

MAX_LENGTH=${MAX_LENGTH:-512}               # tokens of prompt and response
MAX_PROMPT_LENGTH=${MAX_PROMPT_LENGTH:-256} # tokens
DO_SAMPLE=${DO_SAMPLE:-1}                   # 1: answers are sampled; 0: greedy
TOP_P=${TOP_P:-1.0}
TOP_K=${TOP_K:-0}
TEMPERATURE=${TEMPERATURE:-1.0}

# ---- models ----------------------------------------------------------------------------------------------------------

is_checkpoint() { [[ -f $1/config.json || -f $1/adapter_config.json ]]; }

# latest_checkpoint DIR: prints the checkpoint of the run in DIR. That is DIR itself where it is one, else its epoch*
# folder: the only one, or of several the best (highest dev ROUGE-L, else lowest dev loss, else last). DIR may also be
# the folder above a run (outputs/gpt2/gpt2-xlarge/sft), as long as that holds one run.
latest_checkpoint() {
    local folder run='' ranked=() rouge loss
    if is_checkpoint "$1"; then
        printf '%s\n' "${1%/}"
        return
    fi
    for folder in "${1%/}"/epoch*/ "${1%/}"/*/epoch*/; do
        is_checkpoint "$folder" || continue
        folder=${folder%/}
        [[ -z $run || $run == "$(dirname "$folder")" ]] || fail "$1: holds several runs; name one of its folders"
        run=$(dirname "$folder")
        rouge=-1 loss=inf
        if [[ ${folder##*/} =~ _rougel([0-9.]+) ]]; then rouge=${BASH_REMATCH[1]}; fi
        if [[ ${folder##*/} =~ _loss([0-9.]+) ]]; then loss=${BASH_REMATCH[1]}; fi
        ranked+=("$rouge"$'\t'"$loss"$'\t'"$folder")
    done
    [[ -n $run ]] || fail "$1: no checkpoint there (an epoch* folder with config.json or adapter_config.json)"
    printf '%s\n' "${ranked[@]}" | sort -t $'\t' -k1,1gr -k2,2g -k3,3Vr | sed -n 1p | cut -f3-
}

# A name such as gpt2 or openai-community/gpt2, and not a path into a folder that is here.
is_hub_id() { [[ $1 =~ ^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9._-]+)?$ && ! -e ${1%%/*} ]]; }

# resolve_model VAR FILE REMEDY: points VAR at the folder that holds FILE (config.json of a model, adapter_config.json
# of an adapter). A run folder becomes its checkpoint; a hub id stays as it is.
resolve_model() {
    local name=$1 file=$2 remedy=$3 path=${!1:-} checkpoint
    if [[ -d $path && ! -f $path/$file ]] && checkpoint=$(latest_checkpoint "$path"); then path=$checkpoint; fi
    if [[ -f $path/$file ]] || { [[ ! -e $path ]] && is_hub_id "$path"; }; then
        printf -v "$name" %s "$path"
    elif [[ $file == config.json && -f $path/adapter_config.json ]]; then
        fail "$name=$path: a LoRA adapter, not a model; $remedy"
    elif [[ -d $path ]]; then
        missing "$name=$path: no $file there; $remedy"
    else
        missing "$name=$path: no such folder in $BASE_PATH; $remedy"
    fi
}

# ---- training --------------------------------------------------------------------------------------------------------

# Defaults of every recipe. A family's script decides what differs from family to family.
set_training_defaults() {
    PRECISION=${PRECISION:-bf16} # bf16, fp16 or fp32: picks DS_CONFIG and is part of the output folder's name
    case $PRECISION in
        bf16 | fp16) DS_CONFIG=${DS_CONFIG:-configs/deepspeed/ds_config_$PRECISION.json} ;;
        fp32) DS_CONFIG=${DS_CONFIG:-configs/deepspeed/ds_config_zero1_fp32.json} ;;
        *) fail "PRECISION=$PRECISION: pass bf16, fp16 or fp32" ;;
    esac
    LORA_RANK=${LORA_RANK:-0} # 0: train all weights
    LORA_ALPHA=${LORA_ALPHA:-8}
    LORA_DROPOUT=${LORA_DROPOUT:-0.1}
    PEFT_PATH=${PEFT_PATH:-} # an adapter to continue
    GRADIENT_CHECKPOINTING=${GRADIENT_CHECKPOINTING:-0}
    TRAIN_NUM=${TRAIN_NUM:--1} # rows; -1: all
    DEV_NUM=${DEV_NUM:--1}
    EVAL_BATCH_SIZE=${EVAL_BATCH_SIZE:-16}
    TOKENS_PER_MICRO_BATCH=${TOKENS_PER_MICRO_BATCH:-} # instead of BATCH_SIZE examples, as many as fit
    LR_MIN=${LR_MIN:-1e-7}
    LR_DECAY_STYLE=${LR_DECAY_STYLE:-cosine}
    WARMUP_RATIO=${WARMUP_RATIO:-0}
    WEIGHT_DECAY=${WEIGHT_DECAY:-0.01}
    CLIP_GRAD=${CLIP_GRAD:-1.0}
    TOTAL_ITERS=${TOTAL_ITERS:-} # optimiser steps; empty: EPOCH decides
    SEED=${SEED:-10}
    LOG_INTERVAL=${LOG_INTERVAL:-10}  # steps
    SAVE_INTERVAL=${SAVE_INTERVAL:-1} # epochs
    EVAL_INTERVAL=${EVAL_INTERVAL:-1} # epochs
    KEEP_BEST=${KEEP_BEST:-1}         # checkpoints; -1: all
    EVAL_GEN=${EVAL_GEN:-1}           # 1: dev ROUGE-L after each epoch
    require_number BATCH_SIZE 1 "examples of a micro-batch on one GPU"
    require_number GRAD_ACC 1 "micro-batches of a step"
}

# output_folder TASK CRITERION [DETAILS]: sets SAVE_DIR unless it is set. A seed other than the recipe's has a folder
# of its own.
output_folder() {
    local config=default unit=bsz micro=$BATCH_SIZE batch setting
    if [[ -n $TOKENS_PER_MICRO_BATCH ]]; then
        unit=tokens
        micro=$TOKENS_PER_MICRO_BATCH
    fi
    batch=${micro}x${GRAD_ACC}x${PROCESSES}
    if [[ $LORA_RANK -gt 0 ]]; then config=lora-rank=$LORA_RANK-alpha=$LORA_ALPHA-dropout=$LORA_DROPOUT; fi
    if [[ $NNODES -gt 1 ]]; then batch+=x$NNODES; fi
    setting=criterion=$2__$config-$PRECISION${3:-}__epoch=$EPOCH
    setting+=__$unit=$batch=$((micro * GRAD_ACC * PROCESSES * NNODES))__lr=$LR
    if [[ $SEED != 10 ]]; then setting+=__seed=$SEED; fi
    SAVE_DIR=${SAVE_DIR:-outputs/$CKPT_TYPE/$CKPT_NAME/$1/$setting}
}

# Appends the flags that every training run has to the caller's `flags`.
add_training_flags() {
    flags+=(--model-path "$CKPT_PATH" --data-dir "$DATA_DIR" --train-num "$TRAIN_NUM" --dev-num "$DEV_NUM")
    flags+=(--max-length "$MAX_LENGTH" --max-prompt-length "$MAX_PROMPT_LENGTH")
    if [[ $LORA_RANK -gt 0 ]]; then
        flags+=(--peft lora --peft-lora-r "$LORA_RANK" --peft-lora-alpha "$LORA_ALPHA")
        flags+=(--peft-lora-dropout "$LORA_DROPOUT")
        if [[ -n $PEFT_PATH ]]; then flags+=(--peft-path "$PEFT_PATH"); fi
    fi
    if [[ $GRADIENT_CHECKPOINTING == 1 ]]; then flags+=(--gradient-checkpointing); fi
    flags+=(--batch-size "$BATCH_SIZE" --gradient-accumulation-steps "$GRAD_ACC" --eval-batch-size "$EVAL_BATCH_SIZE")
    flags+=(--num-epochs "$EPOCH" --lr "$LR" --lr-min "$LR_MIN" --lr-decay-style "$LR_DECAY_STYLE")
    flags+=(--warmup-ratio "$WARMUP_RATIO" --weight-decay "$WEIGHT_DECAY" --clip-grad "$CLIP_GRAD" --seed "$SEED")
    if [[ -n $TOKENS_PER_MICRO_BATCH ]]; then flags+=(--tokens-per-micro-batch "$TOKENS_PER_MICRO_BATCH"); fi
    if [[ -n $TOTAL_ITERS ]]; then flags+=(--total-iters "$TOTAL_ITERS"); fi
    flags+=(--log-interval "$LOG_INTERVAL" --save-interval "$SAVE_INTERVAL" --eval-interval "$EVAL_INTERVAL")
    flags+=(--keep-best-n-checkpoints "$KEEP_BEST" --save-dir "$SAVE_DIR")
    if [[ $EVAL_GEN == 1 ]]; then
        flags+=(--eval-gen)
        add_generation_flags
    fi
    flags+=(--deepspeed --deepspeed_config "$DS_CONFIG")
}

# Appends how answers are generated to the caller's `flags`.
add_generation_flags() {
    if [[ $DO_SAMPLE == 1 ]]; then
        flags+=(--do-sample --top-p "$TOP_P" --top-k "$TOP_K" --temperature "$TEMPERATURE")
    fi
}

check_training_inputs() {
    resolve_model CKPT_PATH config.json "put a model there (model_hub/README.md), or set it to a folder or a hub id"
    if [[ -n $PEFT_PATH ]]; then
        [[ $LORA_RANK -gt 0 ]] || fail "PEFT_PATH=$PEFT_PATH: set LORA_RANK to continue an adapter"
        resolve_model PEFT_PATH adapter_config.json "set PEFT_PATH to a checkpoint of a LoRA run"
    fi
    [[ -f $DATA_DIR/train.jsonl ]] ||
        missing "DATA_DIR=$DATA_DIR: no train.jsonl there; data/README.md says how to get or make one"
    [[ -f $DS_CONFIG ]] || missing "DS_CONFIG=$DS_CONFIG: no such file; configs/README.md lists those that are here"
}

# run_sft FLAGS...: supervised fine-tuning of CKPT_PATH on DATA_DIR.
run_sft() {
    local flags=()
    set_training_defaults
    check_training_inputs
    output_folder sft cross_entropy
    add_training_flags
    launch code/distillation.py "${flags[@]}" --criterion cross_entropy "$@"
}

# run_kd FLAGS...: distils TEACHER_MODEL_PATH (with TEACHER_PEFT_PATH merged in) into CKPT_PATH by KD_OBJ. Without a
# divergence to a teacher it is the SFT run, and lands in the SFT run's folder.
run_kd() {
    local flags=() objective=$KD_OBJ
    local remedy="run the teacher's sft script first, or set it to a run folder, a checkpoint"
    if [[ $KD_OBJ == cross_entropy || $KD_OBJ == sft ]]; then
        run_sft "$@"
        return
    fi
    set_training_defaults
    ADAKD_BASE=${ADAKD_BASE:-} # KD_OBJ=adakd: the objective it wraps; empty: rkl
    if [[ $KD_OBJ == adakd && -n $ADAKD_BASE ]]; then objective=adakd+$ADAKD_BASE; fi
    check_training_inputs
    resolve_model TEACHER_MODEL_PATH config.json "$remedy or a hub id (TEACHER_PEFT_PATH is for a LoRA adapter)"
    if [[ -n ${TEACHER_PEFT_PATH:-} ]]; then
        resolve_model TEACHER_PEFT_PATH adapter_config.json "$remedy, or to nothing for a teacher without an adapter"
    fi
    output_folder "$objective" "$objective" "__teacher=${TEACHER_MODEL_NAME}__kd^rate=${KD_RATE}__kd^temp=$KD_TEMP"
    add_training_flags
    flags+=(--teacher-model-path "$TEACHER_MODEL_PATH")
    if [[ -n ${TEACHER_PEFT_PATH:-} ]]; then flags+=(--teacher-peft-path "$TEACHER_PEFT_PATH"); fi
    if [[ -n ${TEACHER_CACHE:-} ]]; then flags+=(--teacher-cache "$TEACHER_CACHE"); fi
    flags+=(--kd-objective "$KD_OBJ" --kd-rate "$KD_RATE" --kd-temperature "$KD_TEMP")
    if [[ -n $ADAKD_BASE ]]; then flags+=(--adakd-base "$ADAKD_BASE"); fi
    launch code/distillation.py "${flags[@]}" "$@"
}

# ---- evaluation ------------------------------------------------------------------------------------------------------

# run_eval CKPT_FILE CKPT_PATH [BATCH] FLAGS...: answers every data set with every seed. CKPT_FILE tells a model
# (config.json) from an adapter (adapter_config.json). CKPT_PATH is relative to where the script was called.
run_eval() {
    local file=$1 ckpt BATCH=16 folder sets=() found=() seeds=() flags=()
    shift
    [[ $# -ge 1 ]] || fail "pass the checkpoint: bash $0 CKPT_PATH [BATCH] [FLAGS...]"
    ckpt=$1
    shift
    if [[ $# -ge 1 && $1 != -* ]]; then
        BATCH=$1
        require_number BATCH 1 "prompts of a batch on one GPU"
        shift
    fi
    if [[ -d $CALLER_DIR/$ckpt ]]; then ckpt=$CALLER_DIR/$ckpt; fi
    SPLIT=${SPLIT:-valid}

    IFS=: read -r -a sets <<<"$DATA_DIRS"
    for folder in "${sets[@]}"; do
        if [[ -f $folder/$SPLIT.jsonl ]] || dry_run; then
            found+=("$folder")
        else
            echo "skipped: $folder/$SPLIT.jsonl is not there" >&2
        fi
    done
    [[ ${#found[@]} -gt 0 ]] || fail "DATA_DIRS=$DATA_DIRS: none of them is there; see data/README.md"
    # shellcheck disable=SC2153 # the evaluation scripts set SEEDS
    read -r -a seeds <<<"$SEEDS"

    resolve_model ckpt "$file" "pass a checkpoint or a run: run_eval.sh a full model, run_eval_lora.sh an adapter"
    if [[ $file == adapter_config.json && -n $BASE_MODEL_PATH ]]; then
        resolve_model BASE_MODEL_PATH config.json "set it to the adapter's base model, or to nothing"
        flags+=(--model-path "$BASE_MODEL_PATH" --peft-path "$ckpt")
    else
        flags+=(--model-path "$ckpt")
    fi
    flags+=(--data-dir "${found[@]}" --split "$SPLIT" --seeds "${seeds[@]}" --eval-batch-size "$BATCH")
    flags+=(--eval-num "$EVAL_NUM" --max-length "$MAX_LENGTH" --max-prompt-length "$MAX_PROMPT_LENGTH")
    add_generation_flags
    launch code/evaluate.py "${flags[@]}" "$@"
}
