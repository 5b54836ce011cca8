"""Tiny models of both kinds, with weights random enough that no two parts can be confused."""

import dataclasses
import signal
from importlib.util import find_spec
from pathlib import Path

import hypothesis
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from daisy import (
    Backbone,
    BackboneConfig,
    EarlyExitEncoder,
    ExitHeads,
    FinalHead,
    HeadsConfig,
    Model,
    policies,
)
from daisy.calibration.traces import Traces
from tests.programs import start_programs

hypothesis.settings.register_profile("daisy", deadline=None, derandomize=True, database=None, max_examples=30)
hypothesis.settings.load_profile("daisy")

SHARED = Path(__file__).parents[2] / "shared"
HOSTS = {
    "tests/fairseq_plugins/": "fairseq and transformers",
    "tests/checkpoints/converters/": "fairseq and transformers",
    "tests/docs/": "fairseq and transformers",
    "tests/integrations/": "fairseq and transformers",
    "tests/real/": "fairseq and transformers",
    "tests/benchmarks/test_package.py": "fairseq and transformers",
    "tests/benchmarks/test_backbones.py": "fairseq and transformers",
    "tests/benchmarks/test_units.py": "fairseq and transformers",
    "tests/benchmarks/test_timing.py": "fairseq and transformers",
    "tests/distributed/": "ray",
    "tests/s3prl_upstream/": "s3prl",
    "tests/benchmarks/minisuperb/": "s3prl",
}
"""Folders of tests that import or start a library for seconds, and the library."""


def find_group(nodeid):
    """Return the group of a test: tests of a group run in one process of pytest-xdist, and share fixtures only there.

    The group is the name of the library that the tests wait for, or else the module's path.
    """
    module = nodeid.split("::")[0]
    return next((host for path, host in HOSTS.items() if module.startswith(path)), module)


def pytest_collection_modifyitems(items):
    """Run the tests that need a slow library first, as they take longest."""
    items.sort(key=lambda item: find_group(item.nodeid) not in HOSTS.values())


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    from xdist.scheduler import LoadScopeScheduling

    class GroupScheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return find_group(nodeid)

    config.option.loadscopereorder = False
    return GroupScheduling(config, log)


POST_NORM = BackboneConfig(
    num_layers=4,
    width=32,
    ffn_width=48,
    num_heads=4,
    conv_layers=((16, 10, 5), *((16, 3, 2),) * 4, *((16, 2, 2),) * 2),
    pos_kernel=16,
    pos_groups=4,
)
PRE_NORM = dataclasses.replace(POST_NORM, pre_norm=True, conv_norm="layer", conv_bias=True, normalize=True)
ODD = dataclasses.replace(POST_NORM, num_layers=3, width=16, num_heads=2, pos_kernel=15)  # CNN as wide as the layers
KINDS = {"post-norm": POST_NORM, "pre-norm": PRE_NORM, "odd": ODD}
RARE = dict(pos_batch_norm=True, projection_norm=False, layer_norm_eps=0.05, normalize=True, normalize_eps=1e-7)
RARE_KINDS = {name: dataclasses.replace(config, **RARE) for name, config in list(KINDS.items())[:2]}
"""Configurations that transformers has, and neither torchaudio nor fairseq."""
KIN_KINDS = {
    "WavLM": dataclasses.replace(POST_NORM, relative_buckets=16, relative_max_distance=30),
    "WavLM, pre-norm": dataclasses.replace(PRE_NORM, relative_buckets=320, relative_max_distance=800),
    "data2vec": dataclasses.replace(POST_NORM, conv_norm="layer", pos_stack=3, pos_kernel=5),
}
"""Networks that differ from HuBERT only in their positions."""


@pytest.fixture(params=KINDS, ids=str)
def config(request):
    return KINDS[request.param]


def randomise(module, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(module.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("norm.weight"):
                parameter.copy_(1 + 0.2 * noise)
            else:
                fan_in = parameter[0].numel() if parameter.ndim > 1 else 10
                parameter.copy_(noise * fan_in**-0.5)
        for name, statistics in sorted(module.named_buffers()):
            if name.endswith("running_mean"):
                statistics.normal_(generator=generator)
            elif name.endswith("running_var"):
                statistics.uniform_(0.2, 3.0, generator=generator)
    return module


def tiny_model(config=POST_NORM, num_units=11, seed=0, regressors=True):
    heads = HeadsConfig(num_layers=config.num_layers, width=config.width, num_units=num_units, regressors=regressors)
    return Model(
        backbone=randomise(Backbone(config), seed),
        heads=randomise(ExitHeads(heads), seed + 1),
        final_head=randomise(FinalHead(config.width, 8, num_units), seed + 2),
    )


@pytest.fixture
def model(config):
    return tiny_model(config)


@pytest.fixture
def waveforms():
    """Seven utterances of one frame to a second and a half; like speech, they have loud and quiet stretches."""
    generator = torch.Generator().manual_seed(7)
    lengths = [400, 719, 720, 5000, 16000, 16100, 24000]
    return [torch.randn(n, generator=generator) * (1 + torch.sin(torch.arange(n) / 900)) * 0.1 for n in lengths]


def spread_policy(model, waveforms):
    """Return an entropy policy whose threshold makes utterances exit at different layers."""
    scores = EarlyExitEncoder(model.backbone, model.heads, policies.Never(), scores=["entropy"])(waveforms).scores
    lowest = scores["entropy"][:, :-1].min(1).values.sort().values
    policy = policies.Entropy(threshold=float(lowest[3:5].mean()))  # between two: rounding decides nothing
    assert len(set(policy.exit_layers(scores).tolist())) > 1
    return policy


def assert_same_output(output, expected, tolerance=0.0):
    """Check that two `ExitOutput`s have the same exits, and states and scores within a tolerance; NaN equals NaN."""
    assert output.exit_layer.tolist() == expected.exit_layer.tolist()
    assert output.num_frames.tolist() == expected.num_frames.tolist()
    assert output.scores.keys() == expected.scores.keys()
    for states, others in zip(output.states, expected.states, strict=True):
        torch.testing.assert_close(states, others, rtol=0, atol=tolerance * float(others.float().std()))
    for name, values in output.scores.items():
        torch.testing.assert_close(values, expected.scores[name], rtol=tolerance, atol=tolerance, equal_nan=True)


@pytest.fixture(scope="session")
def shared():
    if not SHARED.is_dir():
        pytest.skip("needs the shared recordings and model beside the checkout (../shared)")
    return SHARED


PREPARED = (
    *("daisy.cli.demonstration", "daisy.encoder", "daisy.extraction.units", "daisy.units", "daisy.evaluation.page"),
    *("daisy.recognition", "daisy.calibration.text_tracing", "daisy.checkpoints.converters", "torch._dynamo"),
    *("sklearn.cluster", "pyroomacoustics", "matplotlib.backends.backend_agg", "matplotlib.backends.backend_svg"),
    *("scipy.stats", "jinja2", "rich.progress", "rich.table", "jiwer", "torchaudio"),
)
"""Modules that commands import, if installed."""


@pytest.fixture(scope="session")
def programs(tmp_path_factory):
    """A folder of the programs that users call; they run in forks of one process (`tests.fork_server`)."""
    wanted = PREPARED
    names = ["daisy", "python"]
    if find_spec("fairseq") is not None:
        wanted = ("fairseq_cli.hydra_train", *wanted)
        names += ["fairseq-train", "fairseq-hydra-train"]
    modules = [name for name in wanted if find_spec(name.partition(".")[0]) is not None]
    with start_programs(tmp_path_factory.mktemp("programs"), names, modules) as folder:
        yield folder


TRACED_LAYERS = 12


@pytest.fixture(scope="session")
def traces():
    """Utterances of differing difficulty: the loss falls fast or slowly, from high or low, and scores follow it."""
    generator = torch.Generator().manual_seed(4)
    rand = lambda *shape: torch.rand(*shape, generator=generator)  # noqa: E731
    layers = torch.arange(TRACED_LAYERS)
    level, pace = rand(600, 1), 1 + 5 * rand(600, 1)
    disagreement = (0.1 + 0.2 * level + 0.6 * torch.exp(-layers / pace)).clamp(0, 1)
    entropy = 4 * disagreement + 0.1 * rand(600, TRACED_LAYERS)
    change = torch.cat([torch.full((600, 1), torch.nan), (disagreement[:, :-1] - disagreement[:, 1:])], 1)
    return Traces(
        utterances=tuple(map(str, range(600))),
        groups=tuple(str(index // 10) for index in range(600)),
        conditions=("clean",) * 600,
        scores={
            "entropy": entropy,
            "regressed": entropy + 0.3 * rand(600, TRACED_LAYERS),
            "confidence": (1 - disagreement) * (1 - 0.05 * rand(600, TRACED_LAYERS)),
            "margin": (1 - disagreement) * (1 - 0.1 * rand(600, TRACED_LAYERS)),
            "change": change,
            "sentence_confidence": -entropy - 0.2 * rand(600, TRACED_LAYERS),
            "posterior": (1 - disagreement) * (1 - 0.2 * rand(600, TRACED_LAYERS)),
            "text_change": 2 * change,
            "final_agreement": 1 - disagreement,
        },
        losses={"disagreement": disagreement},
        weights=torch.ones(600),
        costs=torch.arange(1, TRACED_LAYERS + 1).float(),
        layers=tuple(range(1, TRACED_LAYERS + 1)),
    )


class Products(TorchDispatchMode):
    """Records each of oneDNN's matrix products: number of rows, activation, and shape of the weights."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._opname == "_linear_pointwise":
            x, *_others, weight, _, after = args[:5] if func._overloadname == "binary" else args[:4]
            self.calls.append((len(x), after, *weight.shape))
        return func(*args, **(kwargs or {}))

    def rows(self, *shape, after="none"):
        return [rows for rows, *what in self.calls if what == [after, *shape]]


@pytest.fixture
def interruptible():
    """Let Ctrl-C interrupt, even if pytest was started with the signal ignored, as in a shell's background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
