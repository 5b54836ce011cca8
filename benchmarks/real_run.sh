#!/usr/bin/env bash
# The real run, start to end: a small HuBERT pre-trained in three iterations, heads trained on it by both of fairseq's
# commands, the better kind shipped as daisy-mini, the test sets extracted clean and noisy, and every figure measured.
# Hours on two cores. A stopped run goes on where it ended. Needs the shared recordings and model (../shared, or
# DAISY_SHARED).
set -euo pipefail
cd "$(dirname "$0")/.."
shared=$(realpath "${DAISY_SHARED:-../shared}")
data=$shared/data
export PATH=$PWD/.venv/bin:$PATH
bin=$PWD/.venv/bin
runs=$PWD/runs
export OMP_NUM_THREADS=1
mkdir -p "$runs/data" "$runs/balanced"

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
[ -f "$runs/speakers.csv" ] || measure training.speakers "$runs/speakers.csv"
manifest data/train "$data"/{librispeech,commands,keywords}/train
manifest data/valid "$data"/{librispeech,commands,keywords}/dev
manifest data/noise "$data/noise/train"
manifest balanced/train "$data"/{librispeech,commands,keywords}/train --speakers "$runs/speakers.csv" --balance 0.5
cp "$runs"/data/{valid,noise}.tsv "$runs/balanced/"
[ -f "$runs/hubert_mini.safetensors" ] ||
    "$bin/daisy" convert "$shared/models/hubert_mini.pt" "$runs/hubert_mini.safetensors" --allow-pickle

CONFIG=hubert_mini_pretraining WARM_START=$shared/models/hubert_mini.pt PROCESSES=2 UPDATES="400 1700 1400" \
    fairseq_plugins/pretrain.sh "$runs/balanced" "$runs/pretrain" common.cpu=true lr_scheduler.warmup_updates=60
hubert=$runs/pretrain/iteration3.safetensors

# Heads on clean audio, by fairseq-train; denoising heads, by fairseq-hydra-train. One core each.
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
networks=(hubert_mini=runs/hubert_mini.safetensors)
for number in 1 2 3; do networks+=("iteration$number=runs/pretrain/iteration$number.safetensors"); done
kinds=(clean=runs/clean.safetensors denoising=runs/denoising.safetensors)
measure training.pretraining "${networks[@]}" --own iteration1=mfcc iteration2=iteration2 iteration3=iteration3 \
    --units mfcc=runs/balanced,runs/pretrain/units1 iteration2=runs/balanced,runs/pretrain/units2 \
    iteration3=runs/balanced,runs/pretrain/units3
measure training.probes "${networks[@]}"
measure training.units "${networks[@]:1:2}" --layers 6 9 12 --centre
measure training.units "${networks[@]:0:3}" --layers 6 9 12 --centre --digits
measure training.ablations runs
measure training.heads "${kinds[@]}"
measure training.ship runs/denoising.safetensors
measure speed.s3prl_cache
measure parity
measure policies.forecasts daisy-mini
measure policies.policies daisy-mini
measure policies.noise_curve daisy-mini
measure policies.guarantee daisy-mini

measure policies.noisy_sets "$runs/test"
for condition in clean 20dB 10dB 5dB 0dB -5dB; do
    echo "$condition:"
    "$bin/daisy" extract "$runs/test/$condition" --out "$runs/features/$condition" | tail -n 1
done
measure policies.extraction runs/features

export OMP_NUM_THREADS=1
minisuperb() { measure minisuperb.run daisy-mini --jobs 2 "$@"; }
depths=(never {plateau,fixed,random}-{80,60,40} daisy_window-60 fbank)
minisuperb --tasks ks sid ic --upstreams "${depths[@]}" --seeds 0 1 2
minisuperb --tasks asr se ss --upstreams "${depths[@]}"
minisuperb --tasks ks sid se ss --upstreams hubert
minisuperb --tasks ks sid --upstreams plateau-60@random-60 --seeds 0 1 2
minisuperb --tasks ks sid --upstreams never {plateau,fixed,random}-60 fixed-80 plateau-60@random-60 --seeds 0 1 2 --data noisy
for data in small noisy; do
    minisuperb --tasks ks --upstreams never {plateau,fixed,random}-60 --featurizer stock --seeds 0 1 2 --data $data
    minisuperb --tasks ks --upstreams {plateau,random}-60 --featurizer dynamic-s --seeds 0 1 2 --data $data
    minisuperb --tasks ks --policy forecast --upstreams forecast-60 --seeds 0 1 2 --data $data
done
minisuperb --table --time --upstreams never {plateau,fixed,random}-60 hubert fbank

measure speed.latency
measure speed.speed
measure speed.memory
measure readme
