#!/usr/bin/env bash
# Pre-trains a small HuBERT from manifests to a checkpoint, in iterations. A stopped run goes on where it ended.
#
#   fairseq_plugins/pretrain.sh MANIFESTS OUT [hydra overrides for all iterations, such as common.cpu=true]
#
# MANIFESTS holds train.tsv, valid.tsv and noise.tsv (daisy manifest). What comes out: OUT/iteration1.safetensors,
# OUT/iteration2.safetensors and so on, and OUT/hubert.pt, the last one, which stock fairseq loads.
#
#   WARM_START=hubert.pt  a HuBERT of the same shape (or of fewer layers) to start from; then its front end stays frozen.
#                         Without it the front end learns too, from scratch, and UPDATES has to be given
#   CONFIG=...            a config of fairseq_plugins/config (hubert_mini_pretraining)
#   UPDATES="400 1700"    of each iteration, as many as there are; the default suits a small network with a warm start
#   UNITS="100 100"       clusters of each iteration (the last number holds for all after it): of MFCC for iteration 1,
#                         then of a layer of the iteration before
#   LAYER="12 12"         that layer for iterations 2, 3 and so on, each recording's mean taken off; benchmarks.training.units
#                         measures what each would give
#   PROCESSES=2           CPU processes (with common.cpu=true); 1 leaves the GPUs to fairseq
set -euo pipefail
manifests=$(realpath "${1:?usage: $0 MANIFESTS OUT [overrides]}")
mkdir -p "${2:?usage: $0 MANIFESTS OUT [overrides]}"
out=$(realpath "$2")
shift 2
here=$(dirname "$(realpath "$0")")
read -ra updates <<<"${UPDATES:-400 1700}"
read -ra units <<<"${UNITS:-100}"
read -ra layers <<<"${LAYER:-12}"
processes=${PROCESSES:-1}
warm_start=${WARM_START:+$(realpath "${WARM_START:-}")}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} HYDRA_FULL_ERROR=1

fail() {
    echo "$0: $1" >&2
    exit 2
}
for file in train.tsv valid.tsv noise.tsv; do
    [ -f "$manifests/$file" ] || fail "$manifests/$file: no such manifest; daisy manifest makes one"
done
for program in daisy fairseq-hydra-train python; do
    command -v "$program" >/dev/null || fail "$program: not found; pip install 'daisy-speech[fairseq]', and activate its environment"
done
[ -z "$warm_start" ] || [ -f "$warm_start" ] || fail "$warm_start: no such checkpoint"
[ -n "$warm_start" ] || [ -n "${UPDATES:-}" ] || fail "from scratch: give UPDATES"
nth() { # INDEX VALUES...: the value, or the last one
    local index=$(($1 > 1 ? $1 : 1))
    shift
    echo "${@:$((index < $# ? index : $#)):1}"
}
settings() { # NUMBER: what an iteration is made with
    echo "$manifests $warm_start ${updates[$1 - 1]} $(nth "$1" "${units[@]}") $(nth "$(($1 - 1))" "${layers[@]}") ${CONFIG:-} ${*:2}"
}
for ((number = 1; number <= ${#updates[@]}; number++)); do
    [ ! -f "$out/settings$number" ] || [ "$(cat "$out/settings$number")" = "$(settings "$number" "$@")" ] ||
        fail "$out: iteration $number was run with other settings ($(cat "$out/settings$number")); use another folder"
done

launcher=()
spread=()
learning=()
[ -n "$warm_start" ] || learning=(model.feature_grad_mult=0.1 criterion.loss_weights='[10.0]')
if [ "$processes" -gt 1 ]; then
    launcher=(torchrun --nproc_per_node "$processes" --master_port "${PORT:-29511}")
    spread=(distributed_training.distributed_world_size="$processes" distributed_training.distributed_backend=gloo)
fi

train() { # NUMBER UPDATES START [overrides]
    local number=$1 updates=$2 start=$3
    shift 3
    "${launcher[@]}" "$(command -v fairseq-hydra-train)" --config-dir "$here/config" \
        --config-name "${CONFIG:-hubert_mini_pretraining}" common.user_dir="$here" task.data="$(data "$number")" \
        task.label_dir="$out/units$number" task.label_rate="$(label_rate "$number")" task.noise_manifest="$manifests/noise.tsv" model.warm_start="$start" \
        hydra.run.dir="$out/run$number" optimization.max_update="$updates" lr_scheduler.total_num_update="$updates" \
        "${spread[@]}" "$@" 2>&1 | tee -a "$out/iteration$number.log" |
        { grep --line-buffered -E "train_inner|valid\]|rror" || true; }
    daisy convert "$out/run$number/checkpoints/checkpoint_last.pt" "$out/iteration$number.safetensors" --allow-pickle
}

labels() { # NUMBER [options]: units of an iteration; recordings that cannot be used are left out (exit status 1)
    daisy labels "$manifests"/{train,valid}.tsv --out "$out/units$1" "${@:2}" || [ $? -eq 1 ]
}

data() { # NUMBER: where the manifests lie that go with an iteration's units
    if [ -f "$out/units$1/train.tsv" ]; then echo "$out/units$1"; else echo "$manifests"; fi
}

label_rate() { # NUMBER: of an iteration's units
    python -c 'import json, sys; print(json.load(open(sys.argv[1]))["label_rate"])' "$out/units$1/labels.json"
}

start() { # NUMBER SOURCE: the source with a head for this iteration's units
    [ -f "$out/start$1.safetensors" ] || python -m fairseq_plugins.warm_start "$2" --manifest "$(data "$1")/train.tsv" \
        --units "$out/units$1/train.km" --out "$out/start$1.safetensors"
}

for ((number = 1; number <= ${#updates[@]}; number++)); do
    [ ! -f "$out/iteration$number.safetensors" ] || continue
    settings "$number" "$@" >"$out/settings$number"
    clusters=$(nth "$number" "${units[@]}")
    if [ "$number" -eq 1 ]; then
        source=$warm_start
        labels 1 --clusters "$clusters"
    else
        source=$out/iteration$((number - 1)).safetensors
        labels "$number" --clusters "$clusters" --centre --fit-frames 100000 --checkpoint "$source" \
            --layer "$(nth $((number - 1)) "${layers[@]}")"
    fi
    [ -z "$source" ] || start "$number" "$source"
    train "$number" "${updates[number - 1]}" "${source:+$out/start$number.safetensors}" "${learning[@]}" "$@"
done
last=$out/iteration${#updates[@]}.safetensors
if [ ! -f "$out/hubert.pt" ] || [ "$(cat "$out/exported" 2>/dev/null)" != "$last" ]; then
    python -m fairseq_plugins.export "$last" "$out/hubert.pt" --half
    echo "$last" >"$out/exported"
fi
