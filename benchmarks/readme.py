"""Renders the README's tables and those of docs/ from results/*.json, between ``<!-- table NAME -->`` and its end.

python benchmarks/readme.py            # also: make readme
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path

import speed_tables
from common import HERE, read
from rendering import source, table

from daisy import _files
from daisy.cli.console import DEFAULT_POLICY
from daisy.evaluation.figures import format_snr

README = HERE.parent / "README.md"
PAGES = (README, *sorted((HERE.parent / "docs").glob("*.md")))
BLOCK = re.compile(r"(<!-- table (\w+) -->\n).*?(<!-- end -->)", re.S)


def exits() -> str:
    """Mean exit layer by SNR of recorded noise, of three policies."""
    return exits_in(["recorded"])


def exits_by_noise() -> str:
    """Mean exit layer by SNR and kind of noise, of three policies."""
    rows = read("noise_curve")["rows"]
    return exits_in(list(dict.fromkeys(row["noise"] for row in rows if row["snr_db"] is not None)))


def exits_in(kinds: list[str]) -> str:
    result = read("noise_curve")
    rows = [row for row in result["rows"] if row["set"] == "all"]
    snrs = [None, *dict.fromkeys(row["snr_db"] for row in rows if row["snr_db"] is not None)]
    rho = {(row["policy"], row["noise"]): row["spearman"] for row in read("adaptivity")["rows"]}
    lines = []
    for policy in ("plateau", "forecast", "entropy"):
        for kind in kinds:
            mine = {row["snr_db"]: row for row in rows if row["policy"] == policy and row["noise"] in (kind, "none")}
            cells = [f"{mine[s]['mean_exit_layer']:.1f} ({mine[s]['low']:.1f}-{mine[s]['high']:.1f})" for s in snrs]
            lines.append([policy, kind, *cells, f"{rho[policy, kind]:.2f}"])
    return table(["policy", "noise", *map(format_snr, snrs), "Spearman"], lines) + source(result)


def sets() -> str:
    """Mean exit layer by SNR of recorded noise, set by set, of the default policy."""
    result = read("noise_curve")
    rows = [row for row in result["rows"] if row["policy"] == DEFAULT_POLICY and row["noise"] in ("none", "recorded")]
    snrs = [None, *dict.fromkeys(row["snr_db"] for row in rows if row["snr_db"] is not None)]
    lines = []
    for name in dict.fromkeys(row["set"] for row in rows):
        mine = {row["snr_db"]: row for row in rows if row["set"] == name}
        lines.append([name, str(mine[None]["num_utterances"]), *(f"{mine[s]['mean_exit_layer']:.1f}" for s in snrs)])
    return table(["set", "utterances", *map(format_snr, snrs)], lines) + source(result)


def policies_in(name: str) -> Callable[[], str]:
    """Fidelity of each policy at each depth, and how much above the static cut's, from results/NAME.json."""

    def policies() -> str:
        result = read(name)
        targets = list(dict.fromkeys(row["target_depth"] for row in result["rows"]))
        lines = []
        for policy in dict.fromkeys(row["policy"] for row in result["rows"]):
            mine = [row for row in result["rows"] if row["policy"] == policy]
            cells = [f"{row['depth']:.0%}: {row['unit_agreement']:.3f} ({row['gain']:+.3f})" for row in mine]
            lines.append([policy, *cells])
        return table(["policy", *(f"set for {target:.0%}" for target in targets)], lines) + source(result)

    return policies


def forecasts() -> str:
    """What the look-ahead policies were learnt with and on: fidelity, and how well the exit follows the noise."""
    result = read("forecasts")
    targets = list(dict.fromkeys(row["target_depth"] for row in result["rows"]))
    lines = []
    for made in dict.fromkeys((row["policy"], row["learnt_on"], row["learner"]) for row in result["rows"]):
        mine = [row for row in result["rows"] if (row["policy"], row["learnt_on"], row["learner"]) == made]
        worst = [max(value for key, value in row.items() if key.startswith("spearman")) for row in mine]
        lines.append(
            [
                *made,
                *(
                    f"{row['gain']:+.3f}, {row['over_chance']:+.3f}, {rho:.2f}"
                    for row, rho in zip(mine, worst, strict=True)
                ),
            ]
        )
    header = ["policy", "noise", "learner", *(f"set for {t:.0%}: static cut, chance, Spearman" for t in targets)]
    return table(header, lines) + source(result)


def default_policy() -> str:
    """The default policy at each depth, with intervals, beside what it is compared with."""
    result = read("policies")
    of = {(row["policy"], row["target_depth"]): row for row in result["rows"]}
    header = ["set for", "depth", "agreement", "static cut", "chance", "above the static cut by", "oracle", "hindsight"]
    lines = []
    for target in dict.fromkeys(target for _, target in of):
        row, known = of[DEFAULT_POLICY, target], [of[name, target] for name in ("oracle", "hindsight")]
        agreement = f"{row['unit_agreement']:.3f} ({row['low']:.3f}-{row['high']:.3f})"
        gain = f"{row['gain']:+.3f} ({row['gain_low']:+.3f} to {row['gain_high']:+.3f})"
        others = [f"{row[f'{name}_unit_agreement']:.3f}" for name in ("fixed", "random")]
        bounds = [f"{each['unit_agreement']:.3f} at {each['depth']:.0%}" for each in known]
        lines.append([f"{target:.0%}", f"{row['depth']:.1%}", agreement, *others, gain, *bounds])
    return table(header, lines) + source(result)


def regimes() -> str:
    """Where depth still buys something."""
    result = read("regimes")
    header = [
        "condition", "full model's units, layer 1 to 12", "clean audio's units, layer 1 to the best",
        "gained after layer 6", "hindsight leaves at", "for the clean audio's units",
    ]  # fmt: skip
    lines = [
        [
            row["condition"], f"{row['unit_agreement_first']:.2f} to {row['unit_agreement_last']:.2f}",
            f"{row['clean_unit_agreement_first']:.2f} to {row['clean_unit_agreement_best']:.2f} "
            f"({row['clean_unit_agreement_best_layer']})",
            f"{row['clean_unit_agreement_after_layer_6']:.2f}", f"{row['hindsight_exit_layer']:.1f}",
            f"{row['hindsight_clean_exit_layer']:.1f}",
        ]
        for row in result["rows"]
    ]  # fmt: skip
    return table(header, lines) + source(result)


def guarantee() -> str:
    """Share of splits whose test risk was above the target, and the depth that was bought."""
    result = read("guarantee")
    header = [
        "audio", "policy", "risk of", "target", "method", "violations", "not certified", "from clean, under noise",
        "depth", "not certified",
    ]  # fmt: skip
    lines = [
        [
            row["audio"], row["policy"], row["risk_name"], f"{row['risk']:.1f}", row["method"],
            f"{row['violations']:.3f}", f"{row['uncertified_violations']:.3f}",
            f"{row['violations_under_noise']:.3f}" if row["audio"] == "clean" else "",
            f"{row['depth']:.3f}", f"{row['uncertified_depth']:.3f}",
        ]
        for row in result["rows"]
        if row["risk_name"] == "disagreement" or row["risk"] == 0.2  # the others are in the file
    ]  # fmt: skip
    return table(header, lines) + source(result)


def windows() -> str:
    """The published code's window by batch size."""
    result = read("windows")
    lines = [
        [
            row["policy"], str(row["batch"]), row["layers"], f"{row['depth']:.1%}", f"{row['unit_agreement']:.3f}",
            f"{row['gain']:+.3f} ({row['gain_low']:+.3f} to {row['gain_high']:+.3f})", f"{row['other_than_alone']:.1%}",
        ]
        for row in result["rows"]
    ]  # fmt: skip
    header = [
        "policy",
        "batch",
        "layers looked at",
        "depth",
        "agreement",
        "against the static cut",
        "exits unlike alone",
    ]
    return table(header, lines) + source(result)


def decisions() -> str:
    """Microseconds an utterance to decide."""
    result = read("decisions")
    lines = []
    for name in dict.fromkeys(row["policy"] for row in result["rows"]):
        mine = [row for row in result["rows"] if row["policy"] == name]
        lines.append([name, *(f"{r['decision_us']:.1f} ({r['low_us']:.1f}-{r['high_us']:.1f})" for r in mine)])
    sizes = list(dict.fromkeys(row["batch"] for row in result["rows"]))
    return table(["policy", *(f"batch of {size}: us" for size in sizes)], lines) + source(result)


def heads() -> str:
    """Held-out loss and accuracy of each head."""
    result = read("heads")
    kinds = list(dict.fromkeys(row["heads"] for row in result["rows"]))
    layers = sorted({row["layer"] for row in result["rows"]})

    def cell(kind: str, condition: str, layer: int, field: str) -> str:
        row = next(r for r in result["rows"] if (r["heads"], r["condition"], r["layer"]) == (kind, condition, layer))
        return f"{row[field]:.2f}"

    columns = [(kind, condition) for kind in kinds for condition in ("clean", "0 dB")]
    header = ["layer", *(f"{kind} heads, {condition}: nats / accuracy" for kind, condition in columns)]
    lines = [
        [str(layer), *(f"{cell(k, c, layer, 'loss_nats')} / {cell(k, c, layer, 'accuracy')}" for k, c in columns)]
        for layer in layers
    ]
    return table(header, lines) + source(result)


def parity() -> str:
    """Largest difference from fairseq."""
    result = read("parity")
    models = list(dict.fromkeys(row["model"] for row in result["rows"]))
    lines = []
    for model in models:
        rows = [row for row in result["rows"] if row["model"] == model]
        lines.append([model, str(len(rows)), f"{max(row['max_abs_diff_over_std'] for row in rows):.1e}"])
    return table(["model", "layers", "largest difference / standard deviation"], lines) + source(result)


def pretraining() -> str:
    """Masked prediction of each network, on the same units."""
    result = read("pretraining")
    conditions = list(dict.fromkeys(row["condition"] for row in result["rows"]))
    groups = dict.fromkeys((row["units"], row["model"], row["classifier"]) for row in result["rows"])
    lines = []
    for group in groups:
        chosen = [row for row in result["rows"] if (row["units"], row["model"], row["classifier"]) == group]
        lines.append([*group, *(f"{row['loss_nats']:.2f} / {row['accuracy']:.2f}" for row in chosen)])
    return table(["units", "network", "head", *(f"{c}: nats / accuracy" for c in conditions)], lines) + source(result)


def probes() -> str:
    """Linear probes: some layers, and the best."""
    result = read("probes")
    last = max(row["layer"] for row in result["rows"])
    layers = [0, *range(last // 4, last + 1, last // 4)]
    lines = []
    for task, name in dict.fromkeys((row["task"], row["features"]) for row in result["rows"]):
        rows = {row["layer"]: row for row in result["rows"] if (row["task"], row["features"]) == (task, name)}
        cells = [f"{rows[layer]['accuracy']:.3f}" if len(rows) > 1 else "" for layer in layers]
        best = max(rows.values(), key=lambda row: row["train_accuracy"])
        where = f" at {best['layer']}" if len(rows) > 1 else ""
        lines.append([task, name, *cells, f"{best['accuracy']:.3f} ({best['low']:.3f}-{best['high']:.3f}){where}"])
    header = ["task", "features", *(f"layer {layer}" for layer in layers), "best by cross-validation on train"]
    return table(header, lines) + source(result)


def units_on(name: str) -> Callable[[], str]:
    """What units of each layer tell, from results/NAME.json."""

    def units() -> str:
        result = read(name)
        fields = ("word_information", "word_purity", "speaker_information", "stability", "noise_stability_10_db")
        header = [
            "features",
            "layer",
            "form",
            "word information",
            "purity",
            "speaker information",
            "stability",
            "10 dB",
        ]
        lines = []
        for row in result["rows"]:
            layer = "" if row["features"] == "mfcc" else str(row["layer"])
            form = "centred" if row["centred"] else "raw"
            lines.append([row["features"], layer, form, *(f"{row[field]:.3f}" for field in fields)])
        return table(header, lines) + source(result)

    return units


def s3prl_cache() -> str:
    """What the cache of the s3prl upstream saves."""
    result = read("s3prl_cache")
    lines = [
        [
            row["cache"], f"{row['upstream_sec']:.1f}", f"{row['training_sec']:.0f}",
            f"{row['cache_bytes'] / 2**20:.0f}",
            f"{row['largest_weight_difference']:.0e}" if row["largest_weight_difference"] else "0",
        ]
        for row in result["rows"]
    ]  # fmt: skip
    header = ["cache", "upstream, s", "training, s", "disk, MiB", "largest difference of a trained weight"]
    return table(header, lines) + source(result)


def ablations() -> str:
    """Each variant of the recipe: losses, agreement with clean units at the first and the best layer, keyword probe."""
    result = read("ablations")
    conditions = list(result["rows"][0]["agreement"])
    header = [
        "variant", "MFCC units, nats", "units of iteration 2, nats",
        *(f"agreement, {condition}" for condition in conditions), "keyword",
    ]  # fmt: skip
    lines = []
    for row in result["rows"]:
        losses = [f"{row[f'{units}_nats']:.3f}" for units in ("mfcc", "iteration2")]
        shares = [row["agreement"][condition] for condition in conditions]
        spans = [f"{share[0]:.2f} to {max(share):.2f} ({share.index(max(share)) + 1})" for share in shares]
        lines.append([row["variant"], *losses, *spans, f"{row['keyword_accuracy']:.3f}"])
    return table(header, lines) + source(result)


def minisuperb_in(name: str) -> Callable[[], str]:
    """Each task's upstreams in each condition: mean over seeds, their standard deviation, and the mean exit layer."""

    def minisuperb() -> str:
        result = read(name)
        rows = [row for row in result["rows"] if row["value"] is not None]
        conditions = list(dict.fromkeys(row["condition"] for row in rows))
        found: dict[tuple[str, str, str], dict[str, list[dict]]] = {}
        for row in rows:
            shown = row["featurizer"] not in ("dynamic", None) and row["upstream"] not in ("hubert", "fbank")
            other = f", {row['featurizer']}" if shown else ""
            key = row["task"], row["metric"], row["upstream"] + other
            found.setdefault(key, {}).setdefault(row["condition"], []).append(row)
        lines = []
        for task, metric in dict.fromkeys(key[:2] for key in found):
            mine = {upstream: heard for (t, m, upstream), heard in found.items() if (t, m) == (task, metric)}
            for upstream in sorted(mine, key=_place):
                lines.append([f"{task} {metric}", upstream, *(_seeds(mine[upstream].get(c, [])) for c in conditions)])
        return table(["task", "upstream", *conditions], lines) + source(result)

    return minisuperb


UPSTREAMS = ("never", "hubert", DEFAULT_POLICY, "forecast", "fixed", "random", "daisy_window", "fbank")


def _place(upstream: str) -> int:
    return next(place for place, name in enumerate(UPSTREAMS) if upstream.startswith(name))


def _seeds(rows: list[dict]) -> str:
    if not rows:
        return ""
    values = [row["value"] for row in rows]
    spread = f" ±{statistics.stdev(values):.3f}" if len(values) > 1 else ""
    layer = rows[0]["mean_exit_layer"]
    return f"{statistics.mean(values):.3f}{spread}" + (f" ({layer:.1f})" if layer else "")


TABLES: dict[str, Callable[[], str]] = {
    "exits": exits,
    "exits_by_noise": exits_by_noise,
    "sets": sets,
    "policies": policies_in("policies"),
    "policies_dev": policies_in("policies_dev"),
    "default_policy": default_policy,
    "forecasts": forecasts,
    "regimes": regimes,
    "guarantee": guarantee,
    "windows": windows,
    "decisions": decisions,
    "heads": heads,
    "parity": parity,
    "pretraining": pretraining,
    "probes": probes,
    "units": units_on("units"),
    "units_digits": units_on("units_digits"),
    "ablations": ablations,
    "s3prl_cache": s3prl_cache,
    "minisuperb": minisuperb_in("minisuperb"),
    "minisuperb_noisy": minisuperb_in("minisuperb_noisy"),
    **speed_tables.TABLES,
}


def render(text: str) -> str:
    """A page with every table made again."""
    return BLOCK.sub(lambda block: block[1] + TABLES[block[2]]() + block[3], text)


def main(pages: Iterable[Path] = PAGES) -> None:
    for page in pages:
        _files.write(page, render(page.read_text(encoding="utf-8")).encode())


if __name__ == "__main__":
    main()
