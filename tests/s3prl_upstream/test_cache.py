import json
import multiprocessing

import pytest
import torch

import daisy
from daisy import OutputError
from tests.conftest import tiny_model
from tests.s3prl_upstream.conftest import ANY_EXIT, waveform

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def wavs():
    return [waveform(seed, 5000 + 321 * seed) for seed in range(8)]


@pytest.fixture
def make(hub, checkpoint, tmp_path):
    """An upstream with a cache, as the featurizers leave it."""
    from s3prl_upstream.frozen import Needs

    def upstream(dtype="float32", policy=ANY_EXIT, folder=tmp_path, full=False, **needs):
        expert = hub.daisy_local(checkpoint, policy).eval()
        expert.executed_only = True
        expert.needs = Needs(**needs)
        expert.cache_in(folder, dtype, full)
        return expert

    return upstream


def stored(folder):
    return sorted(folder.rglob("*.safetensors"))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 0), ("float16", 1e-3), ("bfloat16", 8e-3)])
def test_what_comes_back_is_what_went_in(make, wavs, tmp_path, dtype, tolerance):
    upstream = make(dtype)
    expected = upstream.encoder(wavs)
    first = upstream(wavs)
    assert len(stored(tmp_path)) == len(wavs)
    again = make(dtype)
    second = again([*wavs[::-1], wavs[0]])
    assert all(utterance.cached for utterance in again.last.utterances)
    assert again.last.computed_sec == 0
    assert second["exit_layer"].tolist() == [*expected.exit_layer.tolist()[::-1], int(expected.exit_layer[0])]
    for states, computed, later in zip(expected.states, first["states"], second["states"][-2::-1], strict=True):
        assert torch.equal(computed, later)  # the first epoch trains on what later ones do
        assert computed.shape == states.shape  # repeats are not stored
        assert (computed - states).abs().max() <= tolerance * states.abs().max() + 1e-5
    assert all(states.data_ptr() % 64 == 0 for states in second["states"])  # else products may round otherwise
    sizes = sum(path.stat().st_size for path in stored(tmp_path))
    values = sum(states.numel() for states in expected.states)
    assert values * upstream.cache.dtype.itemsize < sizes < values * upstream.cache.dtype.itemsize + 1000 * len(wavs)


def test_only_what_is_needed_is_stored(make, wavs):
    out = make().encoder(wavs)
    for needs, expected in (
        ({"layer": "exit"}, [states[-1:] for states in out.states]),
        ({"layer": 2}, [states[min(2, len(states) - 1)][None] for states in out.states]),
        ({"mean": True}, [states.mean(1, keepdim=True) for states in out.states]),
        (
            {"mean": True, "normalize": True},
            [torch.nn.functional.layer_norm(s, s.shape[-1:]).mean(1, keepdim=True) for s in out.states],
        ),
    ):
        upstream = make(**needs)
        for _ in range(2):
            again = upstream(wavs)["states"]
            assert all(torch.allclose(layers, other, atol=1e-5) for layers, other in zip(again, expected, strict=True))
            assert [layers.shape for layers in again] == [other.shape for other in expected]
    folders = {make(**needs).cache.folder for needs in ({}, {"layer": "exit"}, {"layer": 2}, {"mean": True})}
    assert len(folders) == 4


@pytest.mark.parametrize("needs", [{}, {"mean": True, "normalize": True}, {"layer": "exit"}, {"layer": 2}])
def test_one_full_recording_serves_all_policies(make, wavs, tmp_path, needs):
    policies = (
        {"name": "never"},
        ANY_EXIT,
        {"name": "fixed", "layer": 2},
        {"name": "entropy", "threshold": [1.93, 1.58, 2.09, 3.0]},
        {"name": "regressed", "threshold": [2.91, 2.66, 2.68, 3.0]},
        {"name": "confidence", "threshold": [0.32, 0.54, 0.26, 0.0]},
        {"name": "daisy_window", "threshold": 1.7, "first": 1, "last": 3},
    )
    exits = {}
    for index, policy in enumerate(policies):
        upstream = make(policy=policy, full=True, folder=tmp_path / "full", **needs)
        shared_out, separate = upstream(wavs), make(policy=policy, folder=tmp_path / "own", **needs)
        expected = separate(wavs)
        assert all(utterance.cached for utterance in upstream.last.utterances) == (index > 0)
        assert torch.equal(shared_out["exit_layer"], expected["exit_layer"])
        assert [u.scores.keys() for u in upstream.last.utterances] == [
            u.scores.keys() for u in separate.last.utterances
        ]
        for states, other in zip(shared_out["states"], expected["states"], strict=True):
            assert torch.allclose(states, other, atol=1e-5)
        exits[policy["name"]] = set(shared_out["exit_layer"].tolist())
    assert len(stored(tmp_path / "full")) == len(wavs)
    assert all(exits[name] == {1, 2, 3, 4} for name in ("entropy", "regressed", "confidence"))


def test_a_full_recording_refuses_what_its_heads_do_not_give(hub, tmp_path):
    path = tmp_path / "without.safetensors"
    daisy.save(tiny_model(regressors=False), path)
    policy = {"name": "regressed", "threshold": 1.0}
    with pytest.raises(daisy.CheckpointError, match="reads regressed, which these heads do not give"):
        hub.daisy_local(path, policy).cache_in(tmp_path, "float32", full=True)


def test_another_policy_stride_type_or_sample_is_another_entry(make, wavs, tmp_path):
    entropy = {"name": "entropy", "threshold": 1.7}
    made = [make(), make("float16"), make(policy=entropy), make(policy={**entropy, "score_stride": 2})]
    assert len({upstream.cache.folder for upstream in made}) == 4
    settings = json.loads((made[3].cache.folder / "settings.json").read_text())
    assert (settings["policy"], settings["score_stride"], settings["dtype"]) == (entropy, 2, "float32")
    made[0](wavs[:1])
    other = wavs[0].clone()
    other[100] += 1e-4
    made[0]([other])
    assert not made[0].last.utterances[0].cached
    assert len(stored(tmp_path)) == 2


def test_damaged_and_lost_files_are_made_again(make, wavs, tmp_path):
    upstream = make()
    expected = upstream(wavs)["states"]
    lost, cut, empty, lacking, *rest = stored(tmp_path)
    before = {path: path.read_bytes() for path in (lost, cut, empty, lacking)}
    lost.unlink()
    lacking.write_bytes(before[lacking].replace(b"num_samples", b"num_simples"))
    cut.write_bytes(before[cut][:300])
    empty.write_bytes(b"")
    remade = upstream(wavs)["states"]
    assert sum(utterance.cached for utterance in upstream.last.utterances) == len(rest)
    assert all(torch.equal(a, b) for a, b in zip(remade, expected, strict=True))
    assert {path: path.read_bytes() for path in before} == before


def test_two_processes_fill_one_cache(make, wavs, tmp_path):
    expected = make(folder=tmp_path / "alone")(wavs)["states"]
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(2), context.Queue()

    def fill(order):
        torch.set_num_threads(1)  # the parent's threads are not there
        upstream = make(folder=tmp_path / "both")
        barrier.wait()
        arrays = {i: upstream([wavs[i]])["states"][0].numpy() for i in order}
        results.put([arrays[i] for i in range(len(wavs))])

    processes = [context.Process(target=fill, args=(order,)) for order in (range(8), range(7, -1, -1))]
    for process in processes:
        process.start()
    both = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    for found in both:
        assert all(torch.equal(torch.from_numpy(a), b) for a, b in zip(found, expected, strict=True))
    assert len(stored(tmp_path / "both")) == len(wavs)
    assert not list((tmp_path / "both").rglob("*.part"))


def test_states_beyond_the_types_range_are_refused(make, wavs, tmp_path):
    upstream = make("float16")
    with torch.no_grad():
        upstream.encoder.backbone.encoder.transformer.layers[0].final_layer_norm.weight.fill_(1e6)
    with pytest.raises(OutputError, match="pass the range of float16: --cache-dtype bfloat16 or float32"):
        upstream(wavs)
    assert not stored(tmp_path)


def test_the_size_is_told_before_anything_is_written(make, wavs, tmp_path, capsys):
    upstream = make("float16")
    upstream.cache.expect("train", 10)
    upstream(wavs)
    told = capsys.readouterr().out
    assert "for train (10 batches like the first; 0 of its 8 utterances are there)" in told
    size = sum(path.stat().st_size for path in stored(tmp_path))
    about = float(told.split("about ")[1].split(" KiB")[0]) * 1024
    assert about == pytest.approx(10 * size, rel=0.15)  # but for the files' headers
    upstream(wavs)
    assert capsys.readouterr().out == ""
