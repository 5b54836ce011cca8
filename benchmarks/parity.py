"""Compares states of our backbone with those of fairseq's own HuBERT, layer by layer, on single unpadded utterances.

`benchmarks.parity_backbones` does so for other networks and other libraries.

python -m benchmarks.parity            # the shared small HuBERT, and random Base and Large: 3 minutes
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from fairseq import checkpoint_utils
from fairseq.data import Dictionary
from fairseq.models.hubert.hubert import HubertConfig, HubertModel
from omegaconf import OmegaConf
from torch import Tensor, nn

from benchmarks.parity_backbones import compare_layers
from benchmarks.shared.backbones import FAIRSEQ_SHAPES
from benchmarks.shared.recordings import SAMPLE_RATE, SHARED, read_utterances
from benchmarks.shared.results import Row, write_result
from benchmarks.shared.script import make_parser, run_script
from daisy.checkpoints import Model
from daisy.checkpoints.converters import convert
from daisy.checkpoints.converters.fairseq import from_parts

LARGE = {**FAIRSEQ_SHAPES["large"], "final_dim": 768}
RANDOM = {"base, random": ({"final_dim": 256}, False), "large, random": (LARGE, True)}
"""Maps a name to fairseq's options, and to whether waveforms are normalised."""
RANDOM_UTTERANCES, RANDOM_SEC = 2, 5
SHARED_UNITS = 100


def make_random_pair(options: dict[str, Any], normalize: bool) -> tuple[nn.Module, Model]:
    """Make fairseq's model with random weights, and convert it to ours."""
    dictionary = Dictionary()
    for unit in range(500):
        dictionary.add_symbol(str(unit))
    cfg = OmegaConf.merge(OmegaConf.structured(HubertConfig(label_rate=50.0)), options)
    task = {"normalize": normalize, "sample_rate": SAMPLE_RATE}
    torch.manual_seed(0)
    theirs = HubertModel(cfg, argparse.Namespace(**task), [dictionary]).eval()
    return theirs, from_parts(OmegaConf.to_container(cfg), task, theirs.state_dict())


def load_shared_pair() -> tuple[nn.Module, Model]:
    """Load the shared small HuBERT with fairseq, and convert it to ours."""
    path = SHARED / "models" / "hubert_mini.pt"
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "dict.km.txt").write_text("".join(f"{unit} 1\n" for unit in range(SHARED_UNITS)))
        models, _, _ = checkpoint_utils.load_model_ensemble_and_task([str(path)], arg_overrides={"data": folder})
    return models[0].float().eval(), convert(path, allow_pickle=True)


def compare(name: str, theirs: nn.Module, ours: Model, waveforms: Sequence[Tensor]) -> list[Row]:
    """Compare all layers: the largest difference over the utterances, in standard deviations of the layer."""
    num_layers = ours.backbone.config.num_layers

    def run(waveform: Tensor) -> list[Tensor]:
        if ours.backbone.config.normalize:  # fairseq does this in its task
            waveform = torch.nn.functional.layer_norm(waveform, waveform.shape)
        outputs = [*range(1, num_layers), None]  # with pre-norm, None adds the final norm
        return [theirs.extract_features(waveform[None], output_layer=layer)[0][0] for layer in outputs]

    differences = compare_layers(ours, run, waveforms)
    print(f"{name}: largest over layers {differences.max():.2e}")
    return [
        {"model": name, "layer": layer, "max_abs_diff_over_std": difference}
        for layer, difference in enumerate(differences.tolist(), 1)
    ]


def main() -> None:
    parser = make_parser(__doc__, quick="the shared small HuBERT alone; nothing is written")
    arguments = parser.parse_args()
    waveforms = [utterance.waveform for utterance in read_utterances(["librispeech", "keywords"], "test", limit=5)]
    rows = compare("hubert_mini", *load_shared_pair(), waveforms)
    if arguments.quick:
        return
    short = [waveform[: RANDOM_SEC * SAMPLE_RATE] for waveform in waveforms[:RANDOM_UTTERANCES]]
    for name, (options, normalize) in RANDOM.items():
        rows += compare(name, *make_random_pair(options, normalize), short)
    write_result("parity", rows)


if __name__ == "__main__":
    run_script(main)
