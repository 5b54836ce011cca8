import pytest
import torch
from torch.nn import functional as F

from daisy.errors import UsageError
from tests.s3prl_upstream.conftest import ANY_EXIT, LAYERS, waveform

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def wavs():
    return [waveform(seed, 5000 + 321 * seed) for seed in range(8)]


def features(upstream, wavs, name, **settings):
    from s3prl_upstream.featurizer import FEATURIZERS

    featurizer = FEATURIZERS[name](upstream, **settings)
    if featurizer.weighs:
        torch.manual_seed(3)
        torch.nn.init.normal_(featurizer.weights)
    return featurizer, featurizer(wavs, upstream(wavs))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"normalize": True},
        {"layer_selection": 2},
        {"layer_selection": -1},
        {"feature_selection": "last_hidden_state"},
    ],
    ids=str,
)
def test_stock_is_s3prls_sum_of_the_repeated_states(hub, checkpoint, upstream, wavs, settings):
    from s3prl.upstream.interfaces import Featurizer

    featurizer, ours = features(upstream, wavs, "stock", **settings)
    other = hub.daisy_local(checkpoint, ANY_EXIT).eval()
    theirs = Featurizer(other, upstream_device="cpu", **settings)
    theirs.load_state_dict(featurizer.state_dict())
    assert (featurizer.output_dim, featurizer.downsample_rate) == (theirs.output_dim, theirs.downsample_rate)
    with torch.no_grad():
        for wav, weighted in zip(wavs, ours, strict=True):
            expected = theirs([wav], other([wav]))[0]
            assert weighted.shape == expected.shape
            assert torch.allclose(weighted, expected, atol=1e-5)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("name", ["dynamic", "dynamic-s"])
def test_dynamic_weighs_the_executed_layers_of_each_utterance(upstream, wavs, name, normalize):
    featurizer, ours = features(upstream, wavs, name, normalize=normalize)
    out = upstream.encoder(wavs)
    assert set(out.exit_layer.tolist()) == {1, 2, 3, 4}
    rows = featurizer.weights.detach()
    assert rows.shape == ((LAYERS + 1,) if name == "dynamic" else (LAYERS, LAYERS + 1))
    for weighted, states, exit_layer in zip(ours, out.states, out.exit_layer.tolist(), strict=True):
        row = rows[: exit_layer + 1] if name == "dynamic" else rows[exit_layer - 1, : exit_layer + 1]
        expected = torch.zeros_like(states[0])
        for weight, state in zip(row.exp() / row.exp().sum(), states, strict=True):
            expected += weight * (F.layer_norm(state, state.shape[-1:]) if normalize else state)
        assert torch.allclose(weighted, expected, atol=1e-5)


def test_dynamic_s_learns_only_rows_that_were_used(upstream, wavs):
    featurizer, ours = features(upstream, wavs, "dynamic-s")
    exits = upstream.encoder(wavs).exit_layer.tolist()
    b = exits.index(2)
    ours[b].square().sum().backward()
    used = featurizer.weights.grad.abs() > 0
    assert used.nonzero().tolist() == [[1, 0], [1, 1], [1, 2]]


def test_dynamic_s_says_where_training_left_nothing(upstream, wavs, capsys):
    featurizer, _ = features(upstream, wavs, "dynamic-s")
    exits = upstream.encoder(wavs).exit_layer.tolist()
    featurizer.weights.data[1] = 0
    featurizer.eval()(wavs, upstream(wavs))
    featurizer(wavs, upstream(wavs))
    assert 2 in exits
    assert capsys.readouterr().out.count("nothing left at layer 2 in training") == 1


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("stock", {"feature_selection": "hidden_state_9"}, "-s: unknown feature 'hidden_state_9'"),
        ("stock", {"layer_selection": 5}, "-l 5: the upstream has layers 0 to 4"),
        ("dynamic", {"layer_selection": 2}, "-s and -l go with stock"),
        ("dynamic-s", {"feature_selection": "last_hidden_state"}, "-s and -l go with stock"),
    ],
)
def test_selections_that_are_refused(upstream, name, settings, message):
    from s3prl_upstream.featurizer import FEATURIZERS

    with pytest.raises(UsageError, match=message):
        FEATURIZERS[name](upstream, **settings)


def test_the_options_name_every_featurizer():
    from s3prl_upstream import featurizer, options

    assert tuple(featurizer.FEATURIZERS) == options.FEATURIZERS
