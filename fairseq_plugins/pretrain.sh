#!/usr/bin/env bash
# Pre-trains a small HuBERT from manifests to a checkpoint, in two iterations. A stopped run goes on where it ended.
#
#   fairseq_plugins/pretrain.sh MANIFESTS OUT [hydra overrides for both iterations, such as common.cpu=true]
#
# MANIFESTS holds train.tsv, valid.tsv and noise.tsv (daisy manifest). What comes out: OUT/iteration1.safetensors,
# OUT/iteration2.safetensors, and OUT/hubert.pt, which stock fairseq loads.
#
#   WARM_START=hubert.pt  a HuBERT of the same shape (or of fewer layers) to start from; then its front end stays frozen.
#                         Without it the front end learns too, from scratch, and UPDATES has to be given
#   CONFIG=...            a config of fairseq_plugins/config (hubert_mini_pretraining)
#   UPDATES="400 1700"    of each iteration; the default suits a small network with a warm start
#   UNITS="100 100"       clusters of each iteration: MFCC, then a layer of iteration 1
#   LAYER=12              that layer, each recording's mean taken off; benchmarks/units.py measures what each would give
#   PROCESSES=2           CPU processes (with common.cpu=true); 1 leaves the GPUs to fairseq
set -euo pipefail
manifests=$(realpath "${1:?usage: $0 MANIFESTS OUT [overrides]}")
mkdir -p "${2:?usage: $0 MANIFESTS OUT [overrides]}"
out=$(realpath "$2")
shift 2
here=$(dirname "$(realpath "$0")")
read -r updates1 updates2 <<<"${UPDATES:-400 1700}"
read -r units1 units2 <<<"${UNITS:-100 100}"
layer=${LAYER:-12}
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
settings="$manifests $warm_start $updates1 $updates2 $units1 $units2 $layer ${CONFIG:-} $*"
[ ! -f "$out/settings" ] || [ "$(cat "$out/settings")" = "$settings" ] ||
    fail "$out: holds a run with other settings ($(cat "$out/settings")); use another folder"
echo "$settings" >"$out/settings"

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
        --config-name "${CONFIG:-hubert_mini_pretraining}" common.user_dir="$here" task.data="$manifests" \
        task.label_dir="$out/units$number" task.noise_manifest="$manifests/noise.tsv" model.warm_start="$start" \
        hydra.run.dir="$out/run$number" optimization.max_update="$updates" lr_scheduler.total_num_update="$updates" \
        "${spread[@]}" "$@" 2>&1 | tee -a "$out/iteration$number.log" |
        { grep --line-buffered -E "train_inner|valid\]|rror" || true; }
    daisy convert "$out/run$number/checkpoints/checkpoint_last.pt" "$out/iteration$number.safetensors" --allow-pickle
}

start() { # NUMBER SOURCE: the source with a head for this iteration's units
    [ -f "$out/start$1.safetensors" ] || python -m fairseq_plugins.warm_start "$2" --manifest "$manifests/train.tsv" \
        --units "$out/units$1/train.km" --out "$out/start$1.safetensors"
}

if [ ! -f "$out/iteration1.safetensors" ]; then
    daisy labels "$manifests"/{train,valid}.tsv --out "$out/units1" --clusters "$units1"
    [ -z "$warm_start" ] || start 1 "$warm_start"
    train 1 "$updates1" "${warm_start:+$out/start1.safetensors}" "${learning[@]}" "$@"
fi
if [ ! -f "$out/iteration2.safetensors" ]; then
    daisy labels "$manifests"/{train,valid}.tsv --out "$out/units2" --clusters "$units2" --centre --fit-frames 100000 \
        --checkpoint "$out/iteration1.safetensors" --layer "$layer"
    start 2 "$out/iteration1.safetensors"
    train 2 "$updates2" "$out/start2.safetensors" "${learning[@]}" "$@"
fi
[ -f "$out/hubert.pt" ] || python -m fairseq_plugins.export "$out/iteration2.safetensors" "$out/hubert.pt" --half
