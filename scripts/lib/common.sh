# shellcheck shell=bash
# Shared by all scripts: finds Python and the GPUs, turns variables into flags, prints the command and runs it.
#
# A script sets its variables, sources this file and calls run_sft or run_kd with its own arguments, which are appended
# to the flags. Relative paths start at the repository's root, where everything runs. flags.txt lists the variables of
# a run; an unset one leaves the flag its default (code/arguments.py). The variables of the launcher:
#
#   DRY_RUN=1       print the command only, and accept models and data that are missing
#   DOCTOR=1        check the run and report, without training (docs/preflight.md)
#   PYTHON          default: .venv/bin/python if it exists, else python
#   GPUS            processes per node, one per GPU; default: the visible GPUs; 0: one process on the CPU
#   DEVICE=cpu      do not use the GPUs; GPUS is then the number of CPU processes
#   NNODES          nodes; default: the hosts of HOSTFILE, else 1
#   HOSTFILE        DeepSpeed's list of hosts, one "worker-1 slots=8" per line: one node starts all of them, over ssh
#   NODE_RANK, MASTER_ADDR, MASTER_PORT
#                   without HOSTFILE: run the script on every node, with its rank and the address of node 0
#   LAUNCHER=srun   each process was started by srun, one per GPU (scripts/slurm/train.sbatch)
#   CUDA_VISIBLE_DEVICES
#                   which GPUs of a node

# shellcheck source=scripts/lib/python.sh
source "$(dirname "${BASH_SOURCE[0]}")/python.sh"

fail() {
    printf '%s: %s\n' "$0" "$*" >&2
    exit 1
}

# require_number VARIABLE LEAST HINT
require_number() {
    [[ ${!1} =~ ^[0-9]+$ && ${!1} -ge $2 ]] || fail "$1=${!1}: pass a whole number, $2 or more; $3"
}

dry_run() { [[ ${DRY_RUN:-0} == 1 ]]; }

port_is_taken() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

count_hosts() {
    [[ -f $1 ]] || fail "HOSTFILE=$1: no such file; write one host per line, such as 'worker-1 slots=8'"
    grep -c '^[[:space:]]*[^#[:space:]]' "$1" || fail "HOSTFILE=$1: no host in it"
}

visible_gpus() {
    if ! command -v nvidia-smi >/dev/null || [[ ${CUDA_VISIBLE_DEVICES-all} =~ ^(-1|NoDevFiles)?$ ]]; then
        echo 0
    elif [[ -n ${CUDA_VISIBLE_DEVICES:-} ]]; then
        awk -F, '{ print NF }' <<<"$CUDA_VISIBLE_DEVICES"
    else
        nvidia-smi -L 2>/dev/null | grep -c '^GPU ' || true
    fi
}

# A mistyped variable, such as EPOCHS=1, would have no effect and no message.
if command -v "$PYTHON" >/dev/null; then "$PYTHON" -S scripts/lib/variables.py || exit; fi
DEVICE=${DEVICE:-cuda}
[[ $DEVICE == cuda || $DEVICE == cpu ]] || fail "DEVICE=$DEVICE: pass cuda or cpu"
if [[ -z ${GPUS:-} && $DEVICE == cpu ]]; then GPUS=0; fi
GPUS=${GPUS:-$(visible_gpus)}
HOSTFILE=${HOSTFILE:-}
if [[ -z ${NNODES:-} && -n $HOSTFILE ]]; then NNODES=$(count_hosts "$HOSTFILE"); fi
NNODES=${NNODES:-1}
NODE_RANK=${NODE_RANK:-0}
require_number GPUS 0 "which GPUs is for CUDA_VISIBLE_DEVICES"
require_number NNODES 1 "one node is NNODES=1"
require_number NODE_RANK 0 "node 0 is the one at MASTER_ADDR"
MASTER_ADDR=${MASTER_ADDR:-}
# Nodes must agree on the port; runs that share a node must not.
MASTER_PORT=${MASTER_PORT:-$((NNODES > 1 ? 29500 : 20000 + RANDOM % 10000))}
if [[ $GPUS -eq 0 ]]; then DEVICE=cpu; fi
PROCESSES=$((GPUS > 0 ? GPUS : 1)) # per node
# PyTorch then asks for large pages: on a CPU a step spends a tenth of its time on getting memory page by page.
export THP_MEM_ALLOC_ENABLE=${THP_MEM_ALLOC_ENABLE:-1}

# run_printed COMMAND...: prints the command and, except in a dry run, runs it in the foreground.
run_printed() {
    printf '%q ' "$@"
    printf '\n'
    if dry_run; then return; fi
    command -v "$PYTHON" >/dev/null || fail "PYTHON=$PYTHON: not found; create .venv, or set PYTHON"
    "$@"
}

# add_launcher FLAGS...: appends to `command` what starts the processes; a single process needs nothing. deepspeed and
# torchrun start as modules of $PYTHON and so need no activated environment.
add_launcher() {
    if [[ -n $HOSTFILE ]]; then
        [[ $DEVICE == cuda ]] || fail "HOSTFILE=$HOSTFILE: only for GPUs; set GPUS, or use NODE_RANK and MASTER_ADDR"
        # pdsh passes the words to a shell on each host, between single quotes.
        [[ "$*" != *\'* ]] || fail "HOSTFILE=$HOSTFILE: no path or value may have a single quote; rename it"
        command+=(-m deepspeed.launcher.runner --hostfile "$HOSTFILE" --num_nodes "$NNODES" --num_gpus "$GPUS")
        command+=(--master_port "$MASTER_PORT")
        if [[ -n $MASTER_ADDR ]]; then command+=(--master_addr "$MASTER_ADDR"); fi
        return
    elif [[ $NNODES -gt 1 ]]; then
        [[ -n $MASTER_ADDR ]] || fail "NNODES=$NNODES: set MASTER_ADDR (node 0) and NODE_RANK, or set HOSTFILE"
        [[ $NODE_RANK -lt $NNODES ]] || fail "NODE_RANK=$NODE_RANK: the last of NNODES=$NNODES is $((NNODES - 1))"
        command+=(-m torch.distributed.run --nnodes "$NNODES" --node_rank "$NODE_RANK" --nproc_per_node "$PROCESSES")
        command+=(--master_addr "$MASTER_ADDR" --master_port "$MASTER_PORT")
    elif [[ $DEVICE == cuda && -z ${CUDA_VISIBLE_DEVICES:-} ]]; then
        command+=(-m deepspeed.launcher.runner --num_gpus "$GPUS" --master_port "$MASTER_PORT")
    elif [[ $PROCESSES -gt 1 || $DEVICE == cuda ]]; then # deepspeed --num_gpus would ignore CUDA_VISIBLE_DEVICES
        command+=(-m torch.distributed.run --nproc_per_node "$PROCESSES")
        command+=(--master_addr 127.0.0.1 --master_port "$MASTER_PORT")
    else
        return 0
    fi
    if [[ $NODE_RANK -eq 0 ]] && ! dry_run && port_is_taken "$MASTER_PORT"; then
        fail "MASTER_PORT=$MASTER_PORT: another process has it; set it to a free port, or leave it unset"
    fi
}

# add_slurm_rank: appends to `command` what makes this process the rank that Slurm gave it. It becomes the entry point:
# Slurm's signals reach that, and its exit code reaches Slurm.
add_slurm_rank() {
    local variable
    for variable in SLURM_PROCID SLURM_LOCALID SLURM_NTASKS SLURM_NTASKS_PER_NODE MASTER_ADDR; do
        [[ -n ${!variable:-} ]] || fail "LAUNCHER=srun: $variable is not set; start with scripts/slurm/train.sbatch"
    done
    command+=(exec env "RANK=$SLURM_PROCID" "LOCAL_RANK=$SLURM_LOCALID" "WORLD_SIZE=$SLURM_NTASKS")
    command+=("LOCAL_WORLD_SIZE=$SLURM_NTASKS_PER_NODE" "MASTER_ADDR=$MASTER_ADDR" "MASTER_PORT=$MASTER_PORT")
}

# launch ENTRY FLAGS...: runs ENTRY on all processes.
launch() {
    local entry=$1 command=()
    shift
    if [[ ${DOCTOR:-0} == 1 && $entry == code/distillation.py ]]; then
        entry=code/doctor.py
        command+=(env "WORLD_SIZE=$((PROCESSES * NNODES))" "LOCAL_WORLD_SIZE=$PROCESSES")
    elif [[ -n ${LAUNCHER:-} ]]; then
        [[ $LAUNCHER == srun ]] || fail "LAUNCHER=$LAUNCHER: pass srun, or leave it unset"
        add_slurm_rank
    fi
    # DeepSpeed takes a GPU that it sees, so a run on the CPU hides them.
    if [[ $DEVICE == cpu && $(visible_gpus) -gt 0 ]]; then command+=(env CUDA_VISIBLE_DEVICES= DS_ACCELERATOR=cpu); fi
    command+=("$PYTHON")
    if [[ $entry != code/doctor.py && -z ${LAUNCHER:-} ]]; then add_launcher "$@"; fi
    run_printed "${command[@]}" "$entry" "$@"
}

# take_checkpoints FOLDER WORDS...: the words before the first flag or number become `checkpoints`, relative to FOLDER
# where they exist there.
take_checkpoints() {
    local folder=$1 word
    checkpoints=()
    for word in "${@:2}"; do
        if [[ $word == -* || $word =~ ^[0-9]+$ ]]; then break; fi
        if [[ -e $folder/$word ]]; then word=$folder/$word; fi
        checkpoints+=("$word")
    done
}

# pass RUN: appends to `flags` the variables that are set and that flags.txt lists for RUN.
pass() {
    local variable flag runs
    while read -r variable flag runs; do
        if [[ $variable == \#* || " $runs " != *" $1 "* || -z ${!variable:-} ]]; then continue; fi
        if [[ $flag == '--*' ]]; then
            flags+=("--${!variable}")
        elif [[ $flag != *=1 ]]; then
            flags+=("$flag" "${!variable}")
        elif [[ ${!variable} == 1 ]]; then
            flags+=("${flag%=1}")
        elif [[ ${!variable} != 0 ]]; then
            fail "$variable=${!variable}: pass 1 or 0"
        fi
    done <scripts/lib/flags.txt
}

train() {
    local flags=()
    if [[ ${LORA_RANK:-0} == 0 ]]; then
        unset LORA_RANK LORA_ALPHA LORA_DROPOUT LORA_TARGETS
    else
        flags+=(--peft lora)
    fi
    pass "$1"
    shift
    launch code/distillation.py "${flags[@]}" "$@"
}

# run_sft FLAGS...: supervised fine-tuning of CKPT_PATH on DATA_DIR.
run_sft() { train sft --criterion cross_entropy "$@"; }

# run_kd FLAGS...: distils TEACHER_MODEL_PATH (with TEACHER_PEFT_PATH merged in) into CKPT_PATH by KD_OBJ. Without a
# divergence to a teacher it is the SFT run, and its results go to the SFT run's folder.
run_kd() {
    [[ ${ON_POLICY:-gkd} =~ ^(gkd|distillm2?)$ ]] ||
        fail "ON_POLICY=$ON_POLICY: pass gkd, distillm or distillm2, or leave it unset"
    if [[ $KD_OBJ == cross_entropy || $KD_OBJ == sft ]]; then
        [[ -z ${ON_POLICY:-} ]] || fail "ON_POLICY=$ON_POLICY: needs a divergence to a teacher; set KD_OBJ, or unset it"
        run_sft "$@"
    else
        train kd "$@"
    fi
}
