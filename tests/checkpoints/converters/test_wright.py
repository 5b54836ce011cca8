"""The public code's Conformer and Splitformer, by their weights' names: their modules are built from torchaudio's."""

import math

import pytest
import torch
from torch import nn

import daisy
from daisy import CheckpointError, UsageError
from daisy.checkpoints import convert
from daisy.recognition import Recogniser
from tests.cli.running import run
from tests.conftest import randomise
from tests.models.test_tokens import make_pieces

torchaudio = pytest.importorskip("torchaudio")
SIZE = {"width": 32, "heads": 4, "ffn": 48, "kernel": 7, "mels": 20}


def public_model(parallel=(), blocks=3, num_tokens=40, decoder_layers=0):
    """Parameters of ``Early_conformer``, of ``Splitformer`` with ``parallel``, of ``full_conformer`` with decoders."""

    def conformer(layers):
        return torchaudio.models.Conformer(SIZE["width"], SIZE["heads"], SIZE["ffn"], layers, SIZE["kernel"])

    model = nn.Module()
    model.conv_subsample = nn.Module()
    model.conv_subsample.sequential = nn.Sequential(
        nn.Conv1d(SIZE["mels"], SIZE["width"], 3, 2), nn.Conv1d(SIZE["width"], SIZE["width"], 3, 2)
    )
    model.positional_encoder = nn.Module()
    model.positional_encoder.register_buffer("pe", torch.zeros(100, 1, SIZE["width"]))
    model.linears = nn.ModuleList(nn.Linear(SIZE["width"], num_tokens) for _ in range(blocks))
    model.conformer = nn.ModuleList(conformer(2) for _ in range(blocks))
    if parallel:
        model.conformer_parallel = nn.ModuleList(conformer(1) for _ in parallel)
    if decoder_layers:
        model.layer_norm, model.emb = nn.LayerNorm(SIZE["width"]), nn.Embedding(num_tokens, SIZE["width"])
        model.linears_1, model.positional_encoder_1 = model.linears, model.positional_encoder
        del model.linears, model.positional_encoder
        model.positional_encoder_2 = nn.Module()
        model.positional_encoder_2.register_buffer("pe", torch.zeros(100, 1, SIZE["width"]))
        model.linears_2 = nn.ModuleList(nn.Linear(SIZE["width"], num_tokens) for _ in range(blocks))
        layer = nn.TransformerDecoderLayer(SIZE["width"], SIZE["heads"], SIZE["ffn"], batch_first=True, norm_first=True)
        model.decoders = nn.ModuleList(
            nn.TransformerDecoder(layer, decoder_layers, model.layer_norm) for _ in range(blocks)
        )
    return randomise(model).eval()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    pytest.importorskip("sentencepiece")
    folder = tmp_path_factory.mktemp("wright")
    pieces = make_pieces()
    (folder / "bpe.model").write_bytes(pieces.sentencepiece)
    for name, parallel in (("conformer", ()), ("splitformer", (1, 3))):
        torch.save(public_model(parallel, num_tokens=len(pieces)).state_dict(), folder / f"{name}.pt")
    return folder


@pytest.mark.parametrize("name", ["conformer", "splitformer"])
@torch.no_grad()
def test_each_exit_gives_the_public_codes_outputs(name, place):
    parallel = (1, 3) if name == "splitformer" else ()
    theirs = public_model(parallel, num_tokens=len(make_pieces()))
    model = convert(place / f"{name}.pt", tokens=place / "bpe.model", overrides={"num_heads": "4"})
    config = model.backbone.config
    assert (config.num_layers, config.split_blocks, config.log, config.mask_padding) == (6, parallel, False, False)
    assert model.ctc.config.layers == (2, 4, 6)
    waveform = 0.1 * torch.randn(16640, generator=torch.Generator().manual_seed(0))  # 25 frames, an odd number
    x = theirs.conv_subsample.sequential(model.backbone.compute_mel(waveform).T[None]).transpose(1, 2)
    states, _ = model.backbone(waveform[None])
    x = x + (states[0] - model.backbone.subsample(model.backbone.compute_mel(waveform)))
    length = torch.tensor([x.shape[1]])
    for block in range(3):
        entering, (x, _) = x, theirs.conformer[block](x, length)
        if block + 1 in parallel:
            halved = entering[:, ::2]
            beside, _ = theirs.conformer_parallel[block // 2](halved, torch.tensor([halved.shape[1]]))
            x = x + beside.repeat_interleave(2, 1)[:, : x.shape[1]]
        ours = model.ctc(2 * block + 2, states[2 * block + 2])
        torch.testing.assert_close(ours, theirs.linears[block](x), atol=1e-4, rtol=1e-4)


def test_the_command_converts_and_the_file_recognises(place):
    out = place / "out.safetensors"
    assert "add --tokens FILE" in run("convert", place / "splitformer.pt", out).stderr
    result = run("convert", place / "splitformer.pt", out, "--tokens", place / "bpe.model", "--set", "num_heads=4")
    assert result.returncode == 0, result.stderr
    assert "tokens at layers 2, 4, 6; linear" in result.stdout
    assert "assumed: features without logarithm and padding that is heard, as in the public code" in result.stdout
    transcript = Recogniser(daisy.load(out))([torch.randn(16000, generator=torch.Generator().manual_seed(0))])[0]
    assert transcript.exit_layer == 6
    assert transcript.text


@torch.no_grad()
def test_attention_decoders_give_the_public_codes_outputs(place, tmp_path):
    theirs = public_model(num_tokens=len(make_pieces()), decoder_layers=2)
    torch.save(theirs.state_dict(), tmp_path / "full.pt")
    model = convert(tmp_path / "full.pt", tokens=place / "bpe.model", overrides={"num_heads": "4"})
    assert "left_out" not in model.provenance
    config = model.decoders.config
    assert (config.layers, config.num_blocks, config.begin, config.end, config.ffn_width) == ((2, 4, 6), 2, 1, 2, 48)
    states = torch.randn(1, 9, SIZE["width"], generator=torch.Generator().manual_seed(0))
    texts = torch.tensor([[1, 5, 7, 7, 3]])
    places = torch.arange(5)[:, None] * torch.exp(torch.arange(0, 32, 2) * (-math.log(10000.0) / 32))
    embedded = theirs.emb(texts)
    embedded[..., 0::2] += places.sin()
    embedded[..., 1::2] += places.cos()
    later = torch.triu(torch.full((5, 5), float("-inf")), diagonal=1)
    for block in range(3):
        expected = theirs.linears_2[block](theirs.decoders[block](embedded, states, tgt_mask=later))
        torch.testing.assert_close(model.decoders(2 * block + 2, states, None, texts), expected, atol=1e-5, rtol=1e-5)


def test_what_does_not_fit_is_refused(place, tmp_path):
    with pytest.raises(CheckpointError, match=r"conformer.pt: .*SentencePiece model is wanted; pass tokens=FILE"):
        convert(place / "conformer.pt")
    with pytest.raises(CheckpointError, match="unknown field 'num_head'"):
        convert(place / "conformer.pt", tokens=place / "bpe.model", overrides={"num_head": "4"})
    (tmp_path / "other.model").write_bytes(b"no model")
    with pytest.raises(UsageError, match="not a SentencePiece model"):
        convert(place / "conformer.pt", tokens=tmp_path / "other.model")
    (tmp_path / "dict.txt").write_text("A 1\n")
    with pytest.raises(CheckpointError, match="tokens, and the file of tokens 5"):
        convert(place / "conformer.pt", tokens=tmp_path / "dict.txt")
    state = torch.load(place / "conformer.pt", weights_only=True)
    torch.save({**state, "lstm.weight": torch.zeros(2)}, tmp_path / "more.pt")
    with pytest.raises(CheckpointError, match="weights with no place in a Conformer: lstm.weight"):
        convert(tmp_path / "more.pt", tokens=place / "bpe.model")
    lone = {key: value for key, value in state.items() if not key.startswith("linears.")}
    torch.save(lone, tmp_path / "lone.pt")
    with pytest.raises(CheckpointError, match="no classifier at its first exit"):
        convert(tmp_path / "lone.pt", tokens=place / "bpe.model")
