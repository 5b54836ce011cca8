"""States of our backbone against fairseq's own HuBERT, layer by layer, single unpadded utterances.

python benchmarks/parity.py            # the shared small HuBERT, and random Base and Large: 3 minutes
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from common import SHARED, guarded, utterances, write
from fairseq import checkpoint_utils
from fairseq.data import Dictionary
from fairseq.models.hubert.hubert import HubertConfig, HubertModel
from omegaconf import OmegaConf

from daisy import EarlyExitEncoder, policies
from daisy.checkpoints.converters import convert
from daisy.checkpoints.converters.fairseq import from_parts

LARGE = {
    "extractor_mode": "layer_norm",
    "encoder_layers": 24,
    "encoder_embed_dim": 1024,
    "encoder_ffn_embed_dim": 4096,
    "encoder_attention_heads": 16,
    "layer_norm_first": True,
    "conv_bias": True,
    "final_dim": 768,
}
RANDOM = {"base, random": ({"final_dim": 256}, False), "large, random": (LARGE, True)}


def random_pair(options: dict, normalize: bool):
    """Fairseq's model with random weights, and ours from them."""
    dictionary = Dictionary()
    for unit in range(500):
        dictionary.add_symbol(str(unit))
    cfg = OmegaConf.merge(OmegaConf.structured(HubertConfig(label_rate=50.0)), options)
    task = {"normalize": normalize, "sample_rate": 16000}
    torch.manual_seed(0)
    theirs = HubertModel(cfg, argparse.Namespace(**task), [dictionary]).eval()
    return theirs, from_parts(OmegaConf.to_container(cfg), task, theirs.state_dict())


def shared_pair():
    path = SHARED / "models" / "hubert_mini.pt"
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "dict.km.txt").write_text("".join(f"{unit} 1\n" for unit in range(100)))
        models, _, _ = checkpoint_utils.load_model_ensemble_and_task([str(path)], arg_overrides={"data": folder})
    return models[0].float().eval(), convert(path, allow_pickle=True)


@torch.no_grad()
def compare(name: str, theirs, ours, waveforms) -> list[dict]:
    """Largest difference of each layer over the utterances, in that layer's standard deviations."""
    num_layers = ours.backbone.config.num_layers
    encoder = EarlyExitEncoder(ours.backbone, None, policies.Never())
    worst = torch.zeros(num_layers + 1)
    for waveform in waveforms:
        states = encoder([waveform]).states[0]
        source = (
            torch.nn.functional.layer_norm(waveform, waveform.shape) if ours.backbone.config.normalize else waveform
        )
        for layer in range(1, num_layers + 1):
            output_layer = layer if layer < num_layers else None  # with pre-norm, None adds the final norm
            expected = theirs.extract_features(source[None], output_layer=output_layer)[0][0]
            difference = (states[layer] - expected).abs().max() / expected.std()
            worst[layer] = torch.maximum(worst[layer], difference)  # keeps NaN, as max would not
    print(f"{name}: largest over layers {worst.max():.2e}")
    return [
        {"model": name, "layer": layer, "max_abs_diff_over_std": float(worst[layer])}
        for layer in range(1, num_layers + 1)
    ]


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter).parse_args()
    speech = [utterance.waveform for utterance in utterances(["librispeech", "keywords"], "test", limit=5)]
    measured = compare("hubert_mini", *shared_pair(), speech)
    for name, (options, normalize) in RANDOM.items():
        measured += compare(name, *random_pair(options, normalize), [w[:80000] for w in speech[:2]])
    write("parity", measured)


if __name__ == "__main__":
    guarded(main)
