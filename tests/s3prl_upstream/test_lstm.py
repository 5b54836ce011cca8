"""Packed LSTMs on CPUs: the same outputs and gradients as PyTorch's own, by way of padding."""

from pathlib import Path

import pytest
import soundfile
import torch
import yaml
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence

import benchmarks.minisuperb
from s3prl_upstream.lstm import PaddedLSTM, pad_lstms
from tests.s3prl_upstream.conftest import waveform, weights

CONFIG = Path(benchmarks.minisuperb.__file__).parent / "config" / "small"


def run(model, lengths, seed=0):
    """Return outputs and the gradients of weights and input."""
    states = torch.randn(len(lengths), max(lengths), 7, generator=torch.Generator().manual_seed(seed))
    states.requires_grad_()
    model.zero_grad()
    packed = pack_padded_sequence(states, lengths, batch_first=True, enforce_sorted=False)
    outputs, found = pad_packed_sequence(model(packed)[0], batch_first=True)
    assert found.tolist() == lengths
    outputs.square().sum().backward()
    return outputs.detach(), [states.grad, *(weight.grad.clone() for weight in model.parameters())]


@pytest.mark.parametrize("lengths", [[9, 9, 9], [4, 9, 1, 6]])
@pytest.mark.parametrize(
    "options", [{}, {"bidirectional": True}, {"bidirectional": True, "num_layers": 2, "bias": False}]
)
def test_padding_changes_neither_outputs_nor_gradients(lengths, options):
    torch.manual_seed(0)
    model = nn.LSTM(7, 5, batch_first=True, **options)
    stock, stock_gradients = run(model, lengths)
    model.__class__ = PaddedLSTM
    padded, gradients = run(model, lengths)
    assert (padded - stock).abs().max() < 1e-6
    for ours, theirs in zip(gradients, stock_gradients, strict=True):
        assert (ours - theirs).norm() < 1e-5 * theirs.norm()


def test_dropout_between_layers_is_drawn_in_training_alone():
    torch.manual_seed(0)
    model = PaddedLSTM(7, 5, num_layers=2, dropout=0.5, batch_first=True)
    first, again = (run(model, [9, 4])[0] for _ in range(2))
    assert (first - again).abs().max() > 0.01
    model.eval()
    first, again = (run(model, [9, 4])[0] for _ in range(2))
    assert torch.equal(first, again)


def test_what_is_not_packed_is_run_as_stock():
    torch.manual_seed(0)
    stock, ours = nn.LSTM(7, 5, batch_first=True), PaddedLSTM(7, 5, batch_first=True)
    ours.load_state_dict(stock.state_dict())
    states, begin = torch.randn(2, 3, 7), (torch.randn(1, 2, 5), torch.randn(1, 2, 5))
    for arguments in ((states,), (pack_sequence([states[0], states[1]]), begin)):
        wanted, found = stock(*arguments), ours(*arguments)
        for ours_last, stock_last in zip(found[1], wanted[1], strict=True):
            assert torch.equal(ours_last, stock_last)


@pytest.mark.filterwarnings("ignore")
def test_s3prls_recognisers_and_mask_estimators_are_padded_and_nothing_else_is():
    model = pytest.importorskip("s3prl.downstream.asr.model")
    separation = pytest.importorskip("s3prl.downstream.separation_stft2.model")
    options = {"dim": [4, 4], "dropout": [0, 0], "layer_norm": [False] * 2, "proj": [False] * 2, "sample_rate": [1, 1]}
    options |= {"module": "LSTM", "bidirection": True, "sample_style": "concat", "total_rate": 320}
    torch.manual_seed(0)
    recogniser = model.RNNs(7, 3, 320, **options).eval()
    estimator = separation.SepRNN(7, 3, num_layers=1, hidden_size=4).eval()
    reader = nn.ModuleList([nn.LSTM(7, 5)])
    states, lengths = torch.randn(2, 9, 7), torch.tensor([9, 4])
    packed = pack_padded_sequence(states, lengths, batch_first=True)
    before = [recogniser(states, lengths)[0], *estimator(packed)]
    pad_lstms(nn.ModuleList([recogniser, estimator, reader]))
    assert [type(layer.layer) for layer in recogniser.rnns] == [PaddedLSTM] * 2
    assert type(estimator.rnn) is PaddedLSTM
    assert type(reader[0]) is nn.LSTM
    for ours, stock in zip([recogniser(states, lengths)[0], *estimator(packed)], before, strict=True):
        assert (ours - stock).abs().max() < 1e-5


@pytest.mark.filterwarnings("ignore")
def test_an_enhancer_trained_with_padding_has_the_stock_weights(launch, checkpoint, policy, tmp_path, monkeypatch):
    pytest.importorskip("asteroid", reason="s3prl's enhancement needs asteroid")
    config = write_enhancement(tmp_path)
    models = {"stock": [], "padded": []}
    for name, taken in models.items():
        take = [taken.append] if name == "stock" else [taken.append, pad_lstms]
        monkeypatch.setattr("s3prl_upstream.runner.pad_lstms", lambda model, take=take: [call(model) for call in take])
        known = ("-u", "daisy_local", "-k", checkpoint, "-g", policy, "-d", "enhancement_stft2", "-c", config)
        launch("-m", "train", *known, "-p", tmp_path / name)
    assert [type(model.model.rnn) for (model,) in models.values()] == [nn.LSTM, PaddedLSTM]
    trained, stock = weights(tmp_path / "padded"), weights(tmp_path / "stock")
    assert (trained - stock).norm() < 1e-5 * stock.norm()
    begun = weights(tmp_path / "padded", "states-3.ckpt")
    assert (trained - begun).norm() > 1e-3 * stock.norm()


def write_enhancement(root):
    """Write a corpus of s3prl's enhancement, with recordings of several lengths, and return the configuration."""
    for seed, split in enumerate(("train", "dev", "test")):
        for condition in ("clean", "noisy"):
            (root / split / condition).mkdir(parents=True)
        lists = {"clean": "", "noisy": ""}
        for index in range(4):
            clean = waveform(10 * seed + index, 8000 + 640 * index)
            noisy = clean + 0.1 * torch.randn(len(clean), generator=torch.Generator().manual_seed(index))
            for condition, signal in (("clean", clean), ("noisy", noisy)):
                path = root / split / condition / f"{index}.wav"
                soundfile.write(path, signal.numpy(), 16000)
                lists[condition] += f"{index} {path}\n"
        for condition, text in lists.items():
            (root / split / condition / "wav.scp").write_text(text)
    config = yaml.safe_load((CONFIG / "se.yaml").read_text().replace("{corpus}/test-clean", "{corpus}/test"))
    config = yaml.safe_load(yaml.safe_dump(config).replace("{corpus}", str(root)))
    config["runner"] |= {"total_steps": 6, "eval_step": 3, "save_step": 3, "max_keep": 2}
    config["downstream_expert"]["loaderrc"]["train_batchsize"] = 3
    config["downstream_expert"]["modelrc"] |= {"hidden_size": 8}
    (root / "config.yaml").write_text(yaml.safe_dump(config))
    return root / "config.yaml"
