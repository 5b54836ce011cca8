"""Parts of a model: each has only its own weights, and the results equal the whole model's exactly."""

import itertools
import pickle

import numpy
import pytest
import torch

from daisy import EarlyExitEncoder, policies
from daisy.distributed.pipeline.model_parts import check_cuts, cut_model
from daisy.distributed.pipeline.stages import Left, Package, StageModel, make_exit_settings
from daisy.distributed.pipeline.system import System
from daisy.distributed.pipeline.topology_file import parse_topology
from daisy.distributed.pipeline.wire import pack_states, pack_waveform, unpack_states, unpack_waveform
from daisy.errors import UsageError
from tests.conftest import KIN_KINDS, spread_policy, tiny_model
from tests.recognition.conftest import KINDS, tiny_recogniser


def make_parts(model, levels, cuts=(2,), **options):
    """What takes an utterance through the parts, pickling whatever travels: what came of it, and what travelled."""
    settings, heads = make_exit_settings(model, levels, **options), options.get("heads")
    edges = [0, *cuts, model.backbone.config.num_layers]
    parts = [cut_model(model, before + 1, last, heads) for before, last in itertools.pairwise(edges)]
    stages = [StageModel(pickle.loads(pickle.dumps(part)), settings, keep_states=True) for part in parts]

    def run(waveform, level=0):
        package, between = Package(waveform=waveform.numpy()), []
        for stage in stages:
            layers = range(stage.part.first, stage.part.last + 1)
            package = pickle.loads(pickle.dumps(stage.run(package, layers, level)))
            if isinstance(package, Left):
                return package, between
            between.append(package)
        raise AssertionError("nobody left")

    return run


@pytest.mark.parametrize("cuts", [(2,), (1, 3), ()], ids=str)
def test_parts_give_what_the_whole_gives(model, waveforms, cuts):
    cuts = [cut for cut in cuts if cut < model.backbone.config.num_layers]
    policy = spread_policy(model, waveforms)
    heard = []
    encoder = EarlyExitEncoder(model.backbone, model.heads, policy, keep="last")
    run = make_parts(model, [policy], cuts)
    for waveform in waveforms:
        left, _ = run(waveform)
        expected = encoder([waveform], observe=heard.append)
        assert left.exit_layer == int(expected.exit_layer)
        states = expected.states[0][-1]
        torch.testing.assert_close(torch.tensor(left.states), states, rtol=0, atol=1e-4 * float(states.std()))
        assert left.units.tolist() == heard[-1].units.tolist()


@pytest.mark.parametrize(
    "policy",
    [
        policies.Patience(tolerance=0.3, patience=1),  # reads change: the units of the exit before travel
        policies.Patience(tolerance=1.0, patience=2),  # reads scores of the exits before, which travel too
        policies.Random(histogram=(0.2, 0.3, 0.3, 0.2)),  # reads the draw
        policies.Regressed(threshold=2.3),
        policies.Never(),
    ],
    ids=str,
)
def test_scores_that_remember_travel(policy, waveforms):
    model = tiny_model()
    encoder = EarlyExitEncoder(model.backbone, model.heads, policy)
    exits = encoder(waveforms).exit_layer.tolist()
    run = make_parts(model, [policy], (1, 2, 3))
    assert [run(waveform)[0].exit_layer for waveform in waveforms] == exits


@pytest.mark.parametrize("kind", KIN_KINDS)
def test_parts_of_huberts_kin_give_the_same(kind, waveforms):
    model = tiny_model(KIN_KINDS[kind])
    policy = policies.Patience(tolerance=0.6, patience=1)
    out = EarlyExitEncoder(model.backbone, model.heads, policy)(waveforms)
    run = make_parts(model, [policy], (1, 3))
    for index, waveform in enumerate(waveforms):
        left, _ = run(waveform)
        assert left.exit_layer == int(out.exit_layer[index])
        torch.testing.assert_close(torch.tensor(left.states), out.states[index][-1], atol=1e-4, rtol=1e-4)


def test_strided_heads_and_fewer_exits(waveforms):
    model = tiny_model()
    policy, options = policies.Patience(tolerance=0.5, patience=1), {"score_stride": 3, "exits": (1, 3, 4)}
    encoder = EarlyExitEncoder(model.backbone, model.heads, policy, **options)
    out, run = encoder(waveforms), make_parts(model, [policy], **options)
    for waveform, exit_layer in zip(waveforms, out.exit_layer.tolist(), strict=True):
        left, _ = run(waveform)
        assert left.exit_layer == exit_layer
        assert len(left.units) == -(-len(left.states) // 3)


def test_levels_are_policies_and_below_them_nothing_leaves(waveforms):
    model = tiny_model()
    levels = [policies.Fixed(layer=3), policies.Fixed(layer=1)]
    run = make_parts(model, levels)
    exits = [run(waveforms[3], level)[0].exit_layer for level in (0, 1, -1)]
    assert exits == [3, 1, 4]


def test_a_part_has_only_its_weights(model):
    layers = model.backbone.config.num_layers
    parts = [cut_model(model, layer, layer) for layer in range(1, layers + 1)]
    whole = cut_model(model, 1, layers)
    for part in (*parts, whole):
        stage = StageModel(part, make_exit_settings(model, [policies.Never()]))
        assert stage.num_bytes == part.num_bytes
    everything = sum(
        t.numel() * t.element_size() for m in (model.backbone, model.heads) for t in m.state_dict().values()
    )
    assert whole.num_bytes == everything
    assert not any("feature_extractor" in name for name in parts[1].backbone_weights)
    shared = sum(weights.numel() * 4 for name, weights in parts[1].backbone_weights.items() if "layers." not in name)
    assert sum(part.num_bytes for part in parts) == everything + (layers - 1) * shared
    assert shared < 0.02 * everything


def test_impossible_parts_are_refused(model):
    for first, last in ((0, 1), (2, 1), (1, 9)):
        with pytest.raises(UsageError, match="are not of 1-"):
            cut_model(model, first, last)
    with pytest.raises(UsageError, match="at least one exit policy"):
        make_exit_settings(model, [])


@pytest.mark.parametrize(("wire", "num_bytes", "error"), [("float32", 4, 0), ("bfloat16", 2, 2**-8), ("int8", 1, 0)])
def test_states_on_the_wire(wire, num_bytes, error):
    states = torch.randn(40, 32, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 41)[:, None]
    packed = pickle.loads(pickle.dumps(pack_states(states, wire)))
    back = unpack_states(packed).float()
    assert packed.num_bytes == 40 * 32 * num_bytes + (160 if wire == "int8" else 0)
    if wire == "int8":
        assert ((back - states).abs() <= states.abs().amax(1, keepdim=True) / 127 * 0.5001).all()
        assert pack_states(torch.zeros(2, 3), "int8").values.tolist() == [[0, 0, 0]] * 2
    else:
        assert ((back - states).abs() <= error * states.abs()).all()
    with pytest.raises(UsageError, match="unknown wire"):
        pack_states(states, "int4")


def test_waveforms_on_the_wire():
    """What was recorded in 16 bits comes back as it was; what is too loud is cut off, as by a recorder."""
    samples = torch.arange(-32768, 32768, 7) / 32768
    for wire, size in (("float32", 4), ("int8", 2), ("bfloat16", 2)):
        packed = pickle.loads(pickle.dumps(pack_waveform(samples, wire)))
        assert packed.nbytes == size * len(samples)
        assert torch.equal(unpack_waveform(packed), samples)
    loud = unpack_waveform(pack_waveform(torch.tensor([-2.0, 0.3, 2.0]), "int8"))
    torch.testing.assert_close(loud, torch.tensor([-1.0, 0.3, 1.0]), rtol=0, atol=1 / 32768)


def test_packages_count_their_bytes(waveforms):
    model = tiny_model()
    policy = policies.Patience(tolerance=0.0, patience=3)
    _, (package,) = make_parts(model, [policy], wire="int8")(waveforms[4])
    frames = len(package.states.values)
    assert package.num_bytes == frames * 32 + 4 * frames + 4 * frames + 4 * 2  # states, scales, units, two scores
    assert Package(waveform=numpy.zeros(100, numpy.float32)).num_bytes == 400


@pytest.mark.parametrize("wire", ["bfloat16", "int8"])
def test_fewer_bits_change_states_little(model, waveforms, wire):
    exact, rounded = (make_parts(model, [policies.Never()], wire=w)(waveforms[4])[0] for w in ("float32", wire))
    assert 0 < numpy.abs(exact.states - rounded.states).max() < 0.1 * exact.states.std()


def test_bfloat16_layers(waveforms):
    model = tiny_model()
    encoder = EarlyExitEncoder(model.backbone, model.heads, policies.Never(), keep="last", dtype="bfloat16")
    left, _ = make_parts(model, [policies.Never()], dtype="bfloat16", wire="bfloat16")(waveforms[4])
    expected = encoder([waveforms[4]]).states[0][-1].float()
    assert numpy.abs(left.states - expected.numpy()).max() < 1e-4 * float(expected.std())


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_parts_of_recognisers_write_what_the_whole_writes(kind):
    """CTC exits with and without attention, on HuBERT, Conformer and Splitformer: the same exits and tokens."""
    if not kind.startswith("hubert"):
        pytest.importorskip("torchaudio")
    recogniser = tiny_recogniser(kind)
    generator = torch.Generator().manual_seed(1)
    speech = [torch.randn(n, generator=generator) * 0.1 for n in (9000, 16000, 24000)]
    policy = policies.Never()
    entropies = EarlyExitEncoder(recogniser.backbone, recogniser.ctc, policy, scores=["entropy"])(speech).scores
    policy = policies.Entropy(threshold=float(entropies["entropy"][:, 0].sort().values[:2].mean()))
    heard = []
    encoder = EarlyExitEncoder(recogniser.backbone, recogniser.ctc, policy, keep="last")
    run = make_parts(recogniser, [policy], heads="ctc")
    exits = set()
    for waveform in speech:
        left, _ = run(waveform)
        expected = encoder([waveform], observe=heard.append)
        exits.add(left.exit_layer)
        assert left.exit_layer == int(expected.exit_layer)
        assert left.units.tolist() == heard[-1].units.tolist()
    assert len(exits) > 1


def test_a_block_with_a_half_rate_layer_is_not_cut():
    pytest.importorskip("torchaudio")
    recogniser = tiny_recogniser("splitformer")
    refusal = "a stage that ends at layer {} cuts a block with a half-rate layer: blocks have 2 layers, from 1 on"
    for first, last, end in ((1, 3, 3), (2, 4, 1)):
        with pytest.raises(UsageError, match=refusal.format(end)):
            cut_model(recogniser, first, last)
    with pytest.raises(UsageError, match=refusal.format(3)):
        System(parse_topology({"workers": {"a": {}}, "cuts": [2, 3]}, 6), recogniser, None, address="ray://nowhere:1")
    check_cuts(tiny_recogniser("conformer").backbone.config, [1, 3])


def test_a_block_is_run_from_its_beginning():
    """What came into the block of the utterance before is of no use to the next one."""
    pytest.importorskip("torchaudio")
    recogniser = tiny_recogniser("splitformer")
    stage = StageModel(
        cut_model(recogniser, 1, 4, "ctc"), make_exit_settings(recogniser, [policies.Never()], heads="ctc")
    )
    package = stage.run(Package(waveform=numpy.zeros(9000, numpy.float32)), range(1, 3), 0)
    with pytest.raises(AssertionError, match="layer 4 is run without those before it in its block"):
        stage.run(package, range(4, 5), 0)
