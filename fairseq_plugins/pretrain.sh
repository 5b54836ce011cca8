#!/usr/bin/env bash
# Pre-train a HuBERT with exits, from manifests to checkpoints. A stopped run resumes where it ended.
#
#   fairseq_plugins/pretrain.sh MANIFESTS OUT [hydra overrides for all iterations, such as common.cpu=true]
#
# MANIFESTS holds train.tsv, valid.tsv and noise.tsv (daisy manifest). Results:
#
#   OUT/exits.safetensors  the network with its exit heads, and OUT/exits.json, the policy set on valid.tsv, clean
#                          and with noise:
#                          daisy extract RECORDINGS --checkpoint OUT/exits.safetensors --policy OUT/exits.json --out DIR
#   OUT/hubert.pt          the same network without exit heads, for stock fairseq
#   OUT/iteration1.safetensors and so on, one per iteration; the last is exits.safetensors
#
# From a HuBERT or another speech model, in one iteration on its units, to a HuBERT of smaller or equal size:
#
#   TEACHER=hubert_base.pt TEACHER_LAYER=9 UNITS=500 CONFIG=hubert_small_exits fairseq_plugins/pretrain.sh manifests out
#
# From scratch, in iterations: on units of MFCCs, then on units of the previous iteration:
#
#   UPDATES="250000 400000" CONFIG=hubert_base_exits fairseq_plugins/pretrain.sh manifests out
#
# Settings (environment variables):
#   TEACHER=hubert.pt     source of the units of iteration 1: a HuBERT of daisy, fairseq or transformers, another
#                         transformers encoder (a folder or a name), or a folder of features. Without it: MFCCs.
#                         This and WARM_START are unpickled, which can run code: only use files that you trust
#   TEACHER_LAYER=9       layer of the teacher; for a folder of features, only if its files hold several layers
#   WARM_START=hubert.pt  a HuBERT of the same shape, or with fewer layers, to start from; its front end then stays
#                         frozen. Without it all weights start at random, and the front end is trained too
#   CONFIG=...            hubert_mini_exits (the default), hubert_small_exits or hubert_base_exits, from
#                         fairseq_plugins/config, or a file of your own
#   UPDATES="400 1700"    one number per iteration; the learning rate rises over the first 8 % of the updates.
#                         Without it: with a teacher, one iteration with the configuration's number; else these
#                         two, which only suit a warm-started mini
#   EXITS=last            the exits' losses train the network only in the last iteration, and before only their heads
#                         (all: in every iteration)
#   UNITS="100 100"       clusters of each iteration; the last number is repeated (100; 200 with a teacher)
#   LAYER="12 12"         layer of the previous iteration that gives the units of iterations 2, 3 and so on, with each
#                         recording's mean subtracted; benchmarks.training.units compares the layers
#   PROCESSES=2           CPU processes (with common.cpu=true); 1 leaves the GPUs to fairseq
#   DEVICE=cuda           device on which units and exits.json are computed (cpu)
#   DEPTH=0.6             mean share of the layers that run under exits.json; DEPTH= makes no exits.json
set -euo pipefail
case " ${1:-} " in " -h " | " --help ")
    sed -n '2,/^set /{s/^# \{0,1\}//p;}' "$0"
    exit
    ;;
esac
manifests=$(realpath "${1:?usage: $0 MANIFESTS OUT [overrides]}")
mkdir -p "${2:?usage: $0 MANIFESTS OUT [overrides]}"
out=$(realpath "$2")
shift 2
here=$(dirname "$(realpath "$0")")
config=${CONFIG:-hubert_mini_exits}
config_dir=$here/config
[[ $config != */* ]] || config_dir=$(realpath "$(dirname "$config")")
config=$(basename "$config" .yaml)
teacher=${TEACHER:-}
[ ! -e "$teacher" ] || teacher=$(realpath "$teacher")
warm_start=${WARM_START:+$(realpath "${WARM_START:-}")}
default_updates="400 1700"
[ -z "$teacher" ] || default_updates=config
read -ra updates <<<"${UPDATES:-$default_updates}"
read -ra units <<<"${UNITS:-$([ -n "$teacher" ] && echo 200 || echo 100)}"
read -ra layers <<<"${LAYER:-12}"
processes=${PROCESSES:-1}
depth=${DEPTH-0.6}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} HYDRA_FULL_ERROR=1

fail() {
    echo "$0: $1" >&2
    exit 2
}
for file in train.tsv valid.tsv noise.tsv; do
    [ -f "$manifests/$file" ] || fail "$manifests/$file: no such manifest; daisy manifest makes one"
done
for program in daisy fairseq-hydra-train python; do
    command -v "$program" >/dev/null ||
        fail "$program: not found; pip install 'daisy-speech[fairseq]', and activate its environment"
done
[ -f "$config_dir/$config.yaml" ] || fail "CONFIG=$config: no such file in $config_dir"
[ -z "$warm_start" ] || [ -f "$warm_start" ] || fail "$warm_start: no such checkpoint"
[ -z "${TEACHER_LAYER:-}" ] || [ -n "$teacher" ] || fail "TEACHER_LAYER=$TEACHER_LAYER is of a TEACHER: give one"
case ${EXITS:-all} in all | last) ;; *) fail "EXITS=$EXITS: must be all or last" ;; esac
[ "${EXITS:-all}" = all ] || grep -q exit "$config_dir/$config.yaml" || fail "EXITS=last: $config has no exits"
if [ -z "$teacher" ] && [ -z "${UPDATES:-}" ]; then
    [ -n "$warm_start" ] || fail "from nothing: give UPDATES"
    [[ $config == hubert_mini_* ]] || fail "$config: give UPDATES"
fi
nth() { # INDEX VALUES...: the value, or the last one
    local index=$(($1 > 1 ? $1 : 1))
    shift
    echo "${@:$((index < $# ? index : $#)):1}"
}
exits() { # NUMBER: whether the losses at the exits train the network, or only their heads
    if [ "${EXITS:-all}" = all ] || [ "$1" -eq ${#updates[@]} ]; then echo network; else echo heads; fi
}
settings() { # NUMBER [overrides]: a description of an iteration's settings
    local units_of="$teacher ${TEACHER_LAYER:-}"
    [ "$1" -eq 1 ] || units_of="layer $(nth $(($1 - 1)) "${layers[@]}")"
    local named=$config
    [ "$config_dir" = "$here/config" ] || named=$config_dir/$config
    echo "$named of $manifests, from '$warm_start', ${updates[$1 - 1]} updates, $(nth "$1" "${units[@]}") units" \
        "of '$units_of', exits train $(exits "$1"), ${*:2}"
}
digest() { # FILES...: one line per file, with its name and a digest of its content
    local file sha256
    sha256=$(command -v sha256sum || echo shasum -a 256)
    for file; do
        echo "$(basename "$file") $($sha256 <"$file" | cut -c 1-12)"
    done
}
files=("$manifests"/{train,valid,noise}.tsv)
[ "$config_dir" = "$here/config" ] || files+=("$config_dir/$config.yaml")
for file in "$warm_start" "$teacher"; do
    [ ! -f "$file" ] || files+=("$file")
done
digests=$(digest "${files[@]}")
changed_files() { # SETTINGS: the files that have changed since an iteration noted its settings
    local file
    if [ "$(wc -l <"$1")" -gt 1 ]; then
        grep -vxFf "$1" <<<"$digests" | cut -d " " -f 1 || true
    else # from an older version, which noted no digests
        for file in "${files[@]}"; do
            [ ! "$file" -nt "$1" ] || basename "$file"
        done
    fi
}
for ((number = 1; number <= ${#updates[@]}; number++)); do
    noted=$out/settings$number
    [ -f "$noted" ] || continue
    [ "$(head -n 1 "$noted")" = "$(settings "$number" "$@")" ] ||
        fail "$out: iteration $number was run with other settings ($(head -n 1 "$noted")); use another folder"
    changed=$(changed_files "$noted")
    [ -z "$changed" ] || fail "$out: since iteration $number these have changed: ${changed//$'\n'/, }; use another folder"
done

launcher=()
spread=()
learning=()
[ -n "$warm_start" ] || learning=(model.feature_grad_mult=0.1) # later iterations start from the previous one
if [ "$processes" -gt 1 ]; then
    launcher=(python -m torch.distributed.run --no-python --nproc_per_node "$processes" --master_port "${PORT:-29511}")
    spread=(distributed_training.distributed_world_size="$processes" distributed_training.distributed_backend=gloo)
fi

# bfloat16, which the configurations enable, is many times slower on a CPU without instructions for it.
precision=()
case " $* " in
    *" common.cpu=true "*) grep -qs bf16 /proc/cpuinfo || precision=(common.bf16=false) ;;
esac

train() { # NUMBER UPDATES START [overrides]
    local number=$1 num_updates=$2 start=$3 length=() heads_alone=() head=() rate
    shift 3
    [ -z "$start" ] || head=(model.final_dim="$(final_dim "$start")")
    python -m fairseq_plugins.last_checkpoint "$out/run$number/checkpoints"
    rate=$(label_rate "$number")
    [ "$num_updates" = config ] || length=(optimization.max_update="$num_updates"
        lr_scheduler.total_num_update="$num_updates" lr_scheduler.warmup_updates=$((num_updates * 8 / 100)))
    [ "$(exits "$number")" = network ] || heads_alone=('model.exit_layers=[]' 'criterion.exit_layer_weights=[]')
    "${launcher[@]}" "$(command -v fairseq-hydra-train)" --config-dir "$config_dir" --config-name "$config" \
        common.user_dir="$here" task.data="$(data "$number")" task.label_dir="$out/units$number" \
        task.label_rate="$rate" task.noise_manifest="$manifests/noise.tsv" model.warm_start="$start" \
        hydra.run.dir="$out/run$number" "${length[@]}" "${spread[@]}" "${precision[@]}" "${head[@]}" "$@" \
        "${heads_alone[@]}" 2>&1 |
        tee -a "$out/iteration$number.log" |
        { grep --line-buffered -E "train_inner|valid\]|rror" || true; }
    daisy convert "$out/run$number/checkpoints/checkpoint_last.pt" "$out/iteration$number.safetensors" --allow-pickle
}

labels() { # NUMBER [options]: make units of an iteration; unusable recordings are left out (exit status 1)
    daisy labels "$manifests"/{train,valid}.tsv --out "$out/units$1" --device "${DEVICE:-cpu}" \
        --clusters "$(nth "$1" "${units[@]}")" "${@:2}" || [ $? -eq 1 ]
}

make_units() { # NUMBER SOURCE: from MFCCs, the teacher, or the previous iteration
    if [ "$1" -gt 1 ]; then
        labels "$1" --centre --fit-frames 100000 --teacher "$2" --layer "$(nth $(($1 - 1)) "${layers[@]}")"
    elif [ -n "$teacher" ]; then
        labels 1 --teacher "$teacher" --allow-pickle ${TEACHER_LAYER:+--layer "$TEACHER_LAYER"}
    else
        labels 1
    fi
}

data() { # NUMBER: the folder of the manifests that match an iteration's units
    if [ -f "$out/units$1/train.tsv" ]; then echo "$out/units$1"; else echo "$manifests"; fi
}

label_rate() { # NUMBER: the label rate of an iteration's units
    python -c 'import json, sys; print(json.load(open(sys.argv[1]))["label_rate"])' "$out/units$1/labels.json"
}

final_dim() { # CHECKPOINT: the width of its prediction head, without which fairseq would begin with a random one
    python -c 'import daisy, sys; print(daisy.load(sys.argv[1]).final_head.embeddings.shape[1])' "$1"
}

start() { # NUMBER SOURCE: the source with a head for this iteration's units
    [ -f "$out/start$1.safetensors" ] || python -m fairseq_plugins.warm_start "$2" --manifest "$(data "$1")/train.tsv" \
        --units "$out/units$1/train.km" --out "$out/start$1.safetensors"
}

has_exits() { # CHECKPOINT
    python -c 'import daisy, sys; sys.exit(daisy.load(sys.argv[1]).heads is None)' "$1"
}

for ((number = 1; number <= ${#updates[@]}; number++)); do
    [ ! -f "$out/iteration$number.safetensors" ] || continue
    printf "%s\n" "$(settings "$number" "$@")" "$digests" >"$out/settings$number"
    source=$warm_start
    [ "$number" -eq 1 ] || source=$out/iteration$((number - 1)).safetensors
    make_units "$number" "$source" || {
        code=$?
        [ -e "$out/units$number" ] || rm "$out/settings$number" # nothing was made, so other settings may follow
        exit "$code"
    }
    [ -z "$source" ] || start "$number" "$source"
    train "$number" "${updates[number - 1]}" "${source:+$out/start$number.safetensors}" "${learning[@]}" "$@"
done
last=$out/iteration${#updates[@]}.safetensors
if [ ! -f "$out/hubert.pt" ] || [ "$(cat "$out/exported" 2>/dev/null)" != "$last" ]; then
    python -m fairseq_plugins.export "$last" "$out/hubert.pt" --half
    rm -f "$out/exits.safetensors" "$out/exits.json"
    ! has_exits "$last" || ln "$last" "$out/exits.safetensors" 2>/dev/null || cp "$last" "$out/exits.safetensors"
    echo "$last" >"$out/exported"
fi
if [ -n "$depth" ] && [ -f "$out/exits.safetensors" ]; then
    set_on="depth $depth"$'\n'$(digest "$manifests"/{valid,noise}.tsv)
    if [ ! -f "$out/exits.json" ] || [ "$(cat "$out/calibrated" 2>/dev/null)" != "$set_on" ]; then
        daisy calibrate "$manifests/valid.tsv" --checkpoint "$out/exits.safetensors" --depth "$depth" \
            --noise "$manifests/noise.tsv" --snr clean,20,10,0 \
            --device "${DEVICE:-cpu}" --out "$out/exits.json" || [ $? -eq 1 ]
        echo "$set_on" >"$out/calibrated"
    fi
fi
