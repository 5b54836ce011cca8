"""Our Conformer and Splitformer against the public code of Wright et al. (arXiv:2309.09546, arXiv:2506.18035).

    git clone https://github.com/augustgw/early-exit-transformer
    python -m benchmarks.recognition.parity early-exit-transformer        # results/parity_recognition.json

That code is run unchanged, from its own folder, and none of it is kept here: its networks are built at the published
size with random weights, saved as its training saves them, and read as `daisy convert` reads such files. Both get the
same waveforms, one at a time, and compute their own spectra; their log-probabilities are compared at each exit.
"""

from __future__ import annotations

import sys
import tempfile
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.shared.recordings import SAMPLE_RATE
from benchmarks.shared.results import Row, write_result
from benchmarks.shared.script import make_parser, run_script
from daisy import audio, checkpoints
from daisy.cli.demonstration import list_clips
from daisy.errors import UsageError

NAME = "parity_recognition"
PIECES_SEC = (3.01, 9.0)
"""The first piece has an odd number of frames, which a half-rate layer pads."""
SHAPE: dict[str, Any] = {
    "n_enc_exits": 6,
    "n_enc_layers": 2,
    "enc_voc_size": 256,
    "dec_voc_size": 256,
    "d_model": 256,
    "n_head": 8,
    "d_feed_forward": 2048,
    "depthwise_kernel_size": 31,
    "features_length": 80,
    "max_len": 2000,
    "drop_prob": 0.1,
    "device": "cpu",
}
"""Options by the public code's names, with its defaults."""
NETWORKS: dict[str, dict[str, Any]] = {
    "Early_conformer": {"src_pad_idx": 0},
    "Splitformer": {"src_pad_idx": 0},
    "full_conformer": {"trg_pad_idx": 126, "n_dec_layers": 6},
}
SPECTRA = SimpleNamespace(n_fft=512, hop_length=160, win_length=320, sample_rate=SAMPLE_RATE, n_mels=80)
PIECES = "sentencepiece/build/libri.bpe-256.model"
TEXT = (1, 17, 40, 40, 5, 200, 2)


def build(code: Path, name: str) -> nn.Module:
    """Build one of their networks with random weights; its batch norms have statistics as if after training.

    Raises:
        UsageError: if the folder does not contain that code.
    """
    if not (code / "models" / "model" / "early_exit.py").is_file() or not (code / PIECES).is_file():
        raise UsageError(f"{code}: is no clone of https://github.com/augustgw/early-exit-transformer")
    sys.path.insert(0, str(code))
    torch.manual_seed(0)
    network: nn.Module = getattr(import_module("models.model.early_exit"), name)(**SHAPE, **NETWORKS[name])
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d) and module.running_mean is not None and module.running_var is not None:
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return network.eval()


@torch.no_grad()
def run_theirs(network: nn.Module, waveform: Tensor) -> tuple[Tensor, Tensor | None]:
    """Compute log-probabilities (E, T, V) of their CTC exits, and (E, U, V) of their decoders, if there are any."""
    loader = import_module("util.data_loader")
    mel = loader.melspec_transform(loader.spec_transform(waveform[None], SPECTRA), SPECTRA)  # (1, mels, frames)
    lengths = torch.tensor([mel.shape[2]])
    if type(network).__name__ != "full_conformer":
        return network(mel, lengths)[:, 0], None
    decoded, exits = network(mel, lengths, torch.tensor([TEXT]))
    return exits[:, 0], decoded[:, 0].log_softmax(-1)


@torch.no_grad()
def run_ours(model: checkpoints.Model, waveform: Tensor) -> tuple[Tensor, Tensor | None]:
    """Compute the same as `run_theirs` with our model."""
    assert model.ctc is not None
    states, _ = model.backbone(waveform[None])
    layers = model.ctc.config.layers
    exits = torch.cat([model.ctc(layer, states[layer]).log_softmax(-1) for layer in layers])
    if model.decoders is None:
        return exits, None
    decoded = [model.decoders(layer, states[layer], None, torch.tensor([TEXT])).log_softmax(-1) for layer in layers]
    return exits, torch.cat(decoded)


def measure(code: Path, name: str, waveforms: list[Tensor]) -> list[Row]:
    """Compare a network: one row for each exit and each decoder."""
    theirs = build(code, name)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.pt"
        torch.save(theirs.state_dict(), path)
        ours = checkpoints.convert(path, tokens=code / PIECES)
    differences: dict[str, Tensor] = {}
    for waveform in waveforms:
        for kind, mine, other in zip(
            ("exit", "decoder"), run_ours(ours, waveform), run_theirs(theirs, waveform), strict=True
        ):
            if mine is not None and other is not None:
                found = (mine - other).abs().amax((1, 2)) / other.std((1, 2))
                differences[kind] = torch.maximum(differences.get(kind, torch.zeros(len(found))), found)
    parameters = sum(parameter.numel() for parameter in ours.parameters())
    assert ours.ctc is not None
    rows = []
    for kind, found in differences.items():
        print(f"{name}, {parameters:,} parameters, {kind}s: largest difference {found.max():.1e}", flush=True)
        for layer, difference in zip(ours.ctc.config.layers, found.tolist(), strict=True):
            rows.append(
                {"network": name, "parameters": parameters, "output": kind, "layer": layer}
                | {"their_parameters": sum(p.numel() for p in theirs.parameters())}
                | {"max_abs_diff_over_std": difference}
            )
    return rows


def main() -> None:
    parser = make_parser(__doc__, quick="the Splitformer on one piece; nothing is written")
    parser.add_argument("code", type=Path, help="a clone of the public code")
    arguments = parser.parse_args()
    joined = torch.cat([audio.read(path, SAMPLE_RATE) for path in list_clips()])
    waveforms = [joined[: int(seconds * SAMPLE_RATE)] for seconds in PIECES_SEC[: 1 if arguments.quick else None]]
    rows = []
    for name in ["Splitformer"] if arguments.quick else NETWORKS:
        rows += measure(arguments.code.resolve(), name, waveforms)
    if not arguments.quick:
        write_result(NAME, rows, ("early-exit-transformer",))


if __name__ == "__main__":
    run_script(main)
