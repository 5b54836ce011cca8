#!/usr/bin/env bash
# The complete run: a small HuBERT is pre-trained with exits on units of Whisper, variants of that training are compared,
# heads are trained on it by both of fairseq's commands, it is shipped as daisy-mini, and the figures of docs/results are
# measured, except those of GPUs, of other processors, of several processes and machines (benchmarks.distributed), and of
# damaged files and killed processes (benchmarks.robustness). It takes days on two cores; a stopped run continues where it
# stopped. It needs the shared recordings and model (../shared, or DAISY_SHARED; docs/results/data.md lists them), and the
# teacher: TEACHER, a folder or a name as `daisy labels` takes it.
set -euo pipefail
cd "$(dirname "$0")/.."
shared=$(realpath "${DAISY_SHARED:-../shared}")
data=$shared/data
teacher=${TEACHER:-openai/whisper-base}
export PATH=$PWD/.venv/bin:$PATH
bin=$PWD/.venv/bin
runs=$PWD/runs
export OMP_NUM_THREADS=1
# The previous bundled network, of version 0.1, from the repository's history.
old_asset=9304c38:daisy/assets/daisy-mini.safetensors
old_network=$runs/daisy-mini-0.1.safetensors
[ -f "$old_network" ] || git cat-file -e "$old_asset" 2>/dev/null || {
    echo "$old_asset is not in this clone, which is shallow: git fetch --unshallow" >&2
    exit 1
}
mkdir -p "$runs/data" "$runs/weighted"

measure() { # SCRIPT [options]: a module of benchmarks, found from the root of the repository
    local script=$1
    shift
    "$bin/python" -m "benchmarks.$script" "$@"
}
manifest() { # NAME FOLDER... [options]
    local name=$1
    shift
    [ -f "$runs/$name.tsv" ] || "$bin/daisy" manifest "$@" --root "$data" --out "$runs/$name.tsv"
}
# Heads, and everything fitted on states, learn from the first three sets; the network learns from all sets.
manifest data/train "$data"/{librispeech,commands,keywords}/train
manifest data/valid "$data"/{librispeech,commands,keywords}/dev
manifest data/noise "$data/noise/train"
texts=("$data"/{an4,commands,keywords,librispeech,robotutor,speechocean762})
more=("$data"/{librispeech_more,librivox_french,speech_commands})
folders=("${texts[@]}" "${more[@]}")
manifest weighted/train "${folders[@]/%//train}" --weight keywords=4 --weight commands=2 \
    --weight librispeech=2
manifest weighted/valid "${texts[@]/%//dev}"
cp -p "$runs/data/noise.tsv" "$runs/weighted/"
[ -f "$runs/hubert_mini.safetensors" ] ||
    "$bin/daisy" convert "$shared/models/hubert_mini.pt" "$runs/hubert_mini.safetensors" --allow-pickle

TEACHER=$teacher TEACHER_LAYER=4 UNITS=200 WARM_START=$runs/hubert_mini.safetensors CONFIG=hubert_mini_exits UPDATES=4500 \
    fairseq_plugins/pretrain.sh "$runs/weighted" "$runs/pretrain" common.cpu=true dataset.max_tokens=768000 \
    task.noise_prob=0.55 lr_scheduler.warmup_updates=100
hubert=$runs/pretrain/exits.safetensors

# Other heads for the same network: on clean audio by fairseq-train, and denoising heads by fairseq-hydra-train, one core
# each. Both keep the checkpoint with the least loss on the dev sets that training.heads measures.
clean() {
    "$bin/fairseq-train" "$runs/data" --user-dir fairseq_plugins --task hubert_pretraining --labels '[]' --label-rate 50 \
        --max-sample-size 250000 --min-sample-size 4000 --pad-audio --cpu --seed 1 \
        --arch daisy_hubert --hubert-path "$hubert" --criterion daisy_exit_heads \
        --optimizer adam --adam-betas '(0.9,0.98)' --adam-eps 1e-6 --lr 2e-3 --lr-scheduler polynomial_decay \
        --warmup-updates 40 --total-num-update 500 --max-update 500 --max-tokens 1024000 --num-workers 0 \
        --validate-interval-updates 200 --save-interval-updates 200 --keep-interval-updates 1 --no-epoch-checkpoints \
        --log-format simple --log-interval 20 --save-dir "$runs/clean" >>"$runs/clean.log" 2>&1
    "$bin/daisy" convert "$runs/clean/checkpoint_best.pt" "$runs/clean.safetensors" --allow-pickle
}
denoising() {
    "$bin/fairseq-hydra-train" --config-dir "$PWD/fairseq_plugins/config" --config-name daisy_mini \
        common.user_dir="$PWD/fairseq_plugins" common.cpu=true task.data="$runs/data" model.hubert_path="$hubert" \
        criterion.noise_manifest="$runs/data/noise.tsv" \
        optimization.max_update=500 lr_scheduler.total_num_update=500 hydra.run.dir="$runs/denoise" >>"$runs/denoise.log" 2>&1
    "$bin/daisy" convert "$runs/denoise/checkpoints/checkpoint_best.pt" "$runs/denoising.safetensors" --allow-pickle
}
[ -f "$runs/clean.safetensors" ] || clean &
[ -f "$runs/denoising.safetensors" ] || denoising &
wait %1
wait %2

export OMP_NUM_THREADS=2
measure training.ship "$hubert"
if [ ! -f "$old_network" ]; then
    git show "$old_asset" >"$old_network.part"
    mv "$old_network.part" "$old_network"
fi
networks=(hubert_mini=runs/hubert_mini.safetensors daisy-mini=daisy-mini)
compared=("daisy-mini 0.1=runs/daisy-mini-0.1.safetensors" daisy-mini=daisy-mini)
measure training.exits "${compared[@]}"
measure training.exit_variants runs --teacher "$teacher" --beside daisy-mini=daisy-mini
measure training.probes "${networks[@]}"
for digits in "" --digits; do
    measure training.units "${networks[@]}" --layers 6 9 12 --centre --teacher "$teacher" $digits
done
measure training.heads joint=daisy-mini clean=runs/clean.safetensors denoising=runs/denoising.safetensors
measure training.plain
measure speed.s3prl_cache
measure parity
measure parity_backbones
code=early-exit-transformer # a clone of the public code, if it exists
if [ -d "$code" ]; then measure recognition.parity "$code"; fi
measure policies.forecasts daisy-mini
measure policies.policies daisy-mini
measure policies.conditions daisy-mini
measure policies.ideas daisy-mini
measure policies.noise_curve daisy-mini
measure policies.guarantee daisy-mini

export OMP_NUM_THREADS=1
minisuperb() { measure minisuperb.run daisy-mini --jobs 2 "$@"; }
minisuperb --upstreams never {forecast,fixed,random}-60 fbank --seeds 0 1 2
minisuperb --upstreams never {forecast,fixed,random}-60 fbank --seeds 0 1 2 --data noisy
for data in small noisy; do
    minisuperb --tasks ic ks --upstreams fixed-40 --seeds 0 1 2 --data $data # policies run fewer layers than 7 here
done
minisuperb --tasks ks --upstreams forecast-60@random-60 --seeds 0 1 2
minisuperb --tasks asr --upstreams fixed-20 --seeds 0 1 2
minisuperb --tasks asr_english --upstreams never forecast-60 fixed-60 fbank
minisuperb --table

measure recognition.train --jobs 2
measure recognition.errors
measure recognition.policies
measure recognition.scores
measure recognition.guarantee

measure units.policies daisy-mini
measure units.peers

measure speed.latency
measure speed.speed
measure speed.memory
measure speed.backbones
measure readme
