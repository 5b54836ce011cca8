"""Labels that fairseq would train on wrongly: labels that are not units of the dictionary, or have other times."""

import argparse
import dataclasses
import random
import shutil

import numpy
import pytest
import soundfile
import torch

import daisy
from daisy.errors import UsageError
from tests.conftest import POST_NORM, tiny_model
from tests.fairseq_plugins.conftest import ROOT, heads_options, refuse
from tests.fairseq_plugins.test_criterion import SETTINGS


@pytest.fixture
def data(corpus, tmp_path):
    """A copy of the corpus's manifests and labels, to be damaged."""
    shutil.copytree(corpus / "data", tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture(scope="module", autouse=True)
def plugin():
    import fairseq.utils

    fairseq.utils.import_user_module(argparse.Namespace(user_dir=str(ROOT / "fairseq_plugins")))


def train_heads(corpus, data, **options):
    """A first step of training exit heads on label files."""
    from fairseq.tasks.hubert_pretraining import HubertPretrainingConfig, HubertPretrainingTask

    from fairseq_plugins.criterion import DaisyExitHeads
    from fairseq_plugins.model import DaisyHubert, DaisyHubertConfig

    known = dict(data=str(data), labels=["km"], label_rate=50.0, pad_audio=True)
    task = HubertPretrainingTask(HubertPretrainingConfig(**{**known, **options}))
    task.load_dataset("train")
    heads = DaisyHubert.build_model(DaisyHubertConfig(hubert_path=str(corpus / "hubert.safetensors")), task)
    dataset = task.datasets["train"]
    return DaisyExitHeads(task, **{**SETTINGS, "target": "labels"})(heads, dataset.collater([dataset[0], dataset[3]]))


def pretrain(corpus, data, **options):
    from fairseq_plugins.pretraining_task import DaisyPretrainingConfig, DaisyPretrainingTask

    known = dict(data=str(data), labels=["km"], label_rate=50.0, max_sample_size=8000)
    task = DaisyPretrainingTask.setup_task(DaisyPretrainingConfig(**{**known, **options}))
    task.load_dataset("train")


BOTH = pytest.mark.parametrize("begin", [train_heads, pretrain])


def change(path, old, new, line):
    lines = path.read_text().splitlines(keepends=True)
    lines[line - 1] = lines[line - 1].replace(old, new)
    path.write_text("".join(lines))


@BOTH
@pytest.mark.parametrize(
    ("dictionary", "message"),
    [
        (
            "",
            r"train\.km: line 1: '0' is none of the 0 units of .*dict\.km\.txt, and fairseq would take",
        ),
        ("0 1\n1 1\n2 1\n3 1\n4 1\n", r"train\.km: line 1: '5' is none of the 5 units of .*dict\.km\.txt"),
        ("".join(f"{unit} 1\n" for unit in (0, 1, 2, 3, 5, 6, 7)), r"line 1: '4' is none of the 7 units"),
        ("".join(f"u{unit} 1\n" for unit in range(7)), r"line 1: '0' is none of the 7 units"),
    ],
    ids=["empty", "too short", "one missing", "other words"],
)
def test_units_that_the_dictionary_lacks_are_refused(corpus, data, begin, dictionary, message):
    begin(corpus, data)
    (data / "dict.km.txt").write_text(dictionary)
    with pytest.raises(UsageError, match=message):
        begin(corpus, data)


@BOTH
@pytest.mark.parametrize("label", ["<unk>", "<pad>", "<s>", "</s>", "7", "-1", "1.0", "03", "3+1", "३", "3,"])
def test_a_label_that_is_no_unit_is_refused_with_its_line(corpus, data, begin, label):
    change(data / "train.km", " 3 ", f" {label} ", 7)
    said = label if label != "3+1" else "3\\+1"
    with pytest.raises(UsageError, match=rf"train\.km: line 7: '{said}' is none of the 7 units"):
        begin(corpus, data)


@BOTH
def test_labels_of_another_rate_are_refused(corpus, data, begin):
    for rate, label_rate in ((100.0, 50), (25.0, 50)):
        message = (
            rf"train\.km: 12 of 12 lines are not as long as their recordings: line 1 has 25 labels, and 0\.50 s "
            rf"at label_rate {rate:g} have {round(rate / 2)}\. .*\(all together they have {label_rate:.1f} a second"
        )
        with pytest.raises(UsageError, match=message):
            begin(corpus, data, label_rate=rate)


@BOTH
def test_lines_of_other_recordings_are_refused(corpus, data, begin):
    lines = (data / "train.km").read_text().splitlines()
    (data / "train.km").write_text("\n".join([*lines[1:], lines[0]]) + "\n")
    with pytest.raises(
        UsageError, match=r"train\.km: 1 of 12 lines is not .* line 12 has 25 labels, and 1\.60 s .* have 80"
    ):
        begin(corpus, data)


@BOTH
def test_windows_line_ends_are_refused(corpus, data, begin):
    """fairseq counts a line end as one byte and reads other places of the file than it means to."""
    (data / "train.km").write_bytes((data / "train.km").read_bytes().replace(b"\n", b"\r\n"))
    with pytest.raises(UsageError, match=r"train\.km: has Windows line ends"):
        begin(corpus, data)


def test_recordings_that_are_left_out_do_not_count(corpus, data, caplog):
    """fairseq leaves out short recordings; line numbers are the file's all the same."""
    lines = (data / "train.km").read_text().splitlines()
    lines[0], lines[5] = "", lines[5] + " 0" * 50
    (data / "train.km").write_text("\n".join(lines) + "\n")
    with pytest.raises(UsageError, match=r"2 of 12 lines .* line 1 has 0 labels"):
        pretrain(corpus, data)
    pretrain(corpus, data, min_sample_size=8001)
    (said,) = [record.getMessage() for record in caplog.records if record.name == "fairseq_plugins.label_files"]
    assert said == (
        f"{data}/train.km: 1 of 11 lines is not as long as its recording: line 6 has 100 labels, and 1.00 s at "
        "label_rate 50 have 50; it is trained on as it is, as fairseq does"
    )


@pytest.mark.parametrize(
    ("num_lines", "num_odd", "shift", "refused"),
    [
        (1, 1, 0.0, True),  # all there is
        (2, 1, 0.0, True),  # half of all
        (12, 1, 0.0, False),
        (12, 2, 0.0, True),
        (1000, 10, 0.0, False),
        (1000, 11, 0.0, True),
        (1000, 1, 0.06, True),  # the others fit, but not well
        (1000, 0, 0.06, False),
    ],
)
def test_a_few_odd_lines_are_a_warning(num_lines, num_odd, shift, refused):
    """The odd ones of half the labels; all others short by some seconds, as a frame's span makes them."""
    from pathlib import Path

    from daisy.training.label_lengths import check_lengths

    seconds = numpy.random.default_rng(0).uniform(1, 3, num_lines)
    counts = numpy.floor((seconds - shift - 0.005) * 50).astype(numpy.int64)
    counts[:num_odd] //= 2
    arguments = (Path("x.km"), numpy.arange(num_lines), counts, (seconds * 16000).astype(numpy.int64), 16000, 50)
    message = rf"^x\.km: {num_odd} of {num_lines} lines? "
    if refused:
        with pytest.raises(UsageError, match=message):
            check_lengths(*arguments)
    else:
        odd = check_lengths(*arguments)
        assert bool(odd) == bool(num_odd)
        assert not num_odd or odd.startswith(f"x.km: {num_odd} of {num_lines} lines ")


def test_words_are_units_too_and_blocks_change_nothing(tmp_path, monkeypatch):
    from fairseq.data import Dictionary
    from fairseq.data.audio.hubert_dataset import load_label_offset

    from fairseq_plugins import label_files

    path = tmp_path / "train.ltr"
    generator = numpy.random.default_rng(0)
    for prefix in ("", "u"):
        dictionary = Dictionary()
        for unit in range(200):
            dictionary.add_symbol(f"{prefix}{unit}")
        counts = generator.integers(0, 40, 300)
        lines = [" ".join(f"{prefix}{unit}" for unit in generator.integers(0, 200, count)) for count in counts]
        path.write_text("\n".join(lines))  # the last line has no end
        offsets = load_label_offset(path, range(300), 300)
        for block_bytes in (1 << 24, 1000, 1):
            monkeypatch.setattr(label_files, "BLOCK_BYTES", block_bytes)
            begins, found = label_files.check_units(path, dictionary)
            assert found.tolist() == counts.tolist()
            assert begins.tolist() == [begin for begin, _ in offsets]
        path.write_text("\n".join([*lines[:150], f"{prefix}200", *lines[150:]]))
        with pytest.raises(UsageError, match=rf"line 151: '{prefix}200' is none of the 200 units of .*dict\.ltr\.txt"):
            label_files.check_units(path, dictionary)


def test_label_rate_must_be_given(corpus, data):
    with pytest.raises(UsageError, match=r"target=labels needs the labels' rate, task\.label_rate=50 or so, found -1"):
        train_heads(corpus, data, label_rate=-1.0)


def test_a_warm_starts_units_are_the_dictionarys(data):
    """In the dictionary's order, which is not always that of the numbers."""
    from fairseq_plugins.warm_start import encode_line, read_dictionary, read_lines

    def read_units(path):
        dictionary = read_dictionary(path)
        return [encode_line(line, dictionary) for line in read_lines(path, dictionary)]

    (data / "dict.km.txt").write_text("6 9\n5 8\n4 7\n3 6\n2 5\n1 4\n0 3\n")
    assert read_units(data / "train.km")[0].tolist() == [6 - frame % 7 for frame in range(25)]
    (data / "dict.km.txt").write_text("0 1\n1 1\n")
    with pytest.raises(UsageError, match=r"train\.km: line 1: '2' is none of the 2 units"):
        read_units(data / "train.km")
    (data / "dict.km.txt").write_text("")
    with pytest.raises(UsageError, match=r"dict\.km\.txt: has no units"):
        read_units(data / "train.km")
    (data / "dict.km.txt").unlink()
    with pytest.raises(UsageError, match=r"dict\.km\.txt: cannot be read .*; it stands beside the units"):
        read_units(data / "train.km")


def test_a_warm_start_looks_at_the_lines_of_the_recordings_that_it_hears(corpus, data, tmp_path, monkeypatch):
    from fairseq_plugins import warm_start

    encode_line, read_dictionary = warm_start.encode_line, warm_start.read_dictionary
    encoded, read = [], []
    monkeypatch.setattr(warm_start, "encode_line", lambda *given: encoded.append(given[0]) or encode_line(*given))
    monkeypatch.setattr(warm_start, "read_dictionary", lambda path: read.append(path) or read_dictionary(path))
    lines = (data / "train.km").read_text().splitlines(keepends=True)
    out, units = tmp_path / "start.safetensors", str(data / "train.km")
    call = ["warm_start", str(corpus / "hubert.safetensors"), "--manifest", str(data / "train.tsv"), "--units", units]
    monkeypatch.setattr("sys.argv", [*call, "--out", str(out), "--recordings", "3"])
    warm_start.main()
    assert encoded == [lines[index] for index in random.Random(0).sample(range(12), 3)]
    assert len(read) == 1
    assert daisy.load(out).final_head.num_units == 7 + 4  # special symbols


def test_nothing_is_trained_on_labels_outside_the_dictionary(corpus, data, programs, tmp_path):
    (data / "dict.km.txt").write_text("")
    options = [*heads_options(corpus, tmp_path / "run", 4), "--labels", '["km"]', "--target", "labels"]
    printed = refuse(programs / "fairseq-train", data, *options[1:])
    assert f".km: line 1: '0' is none of the 0 units of {data}/dict.km.txt" in printed
    assert "num_updates" not in printed
    assert not list((tmp_path / "run").glob("checkpoint*"))


def test_the_tasks_audio_has_the_checkpoints_rate(corpus, data, tmp_path):
    daisy.save(tiny_model(dataclasses.replace(POST_NORM, sample_rate=8000)), tmp_path / "hubert.safetensors")
    with pytest.raises(
        UsageError, match=r"hubert\.safetensors: takes audio at 8000 Hz, and the task gives it at 16000"
    ):
        train_heads(tmp_path, data)


def test_noise_is_heard_at_the_tasks_rate(corpus, tmp_path):
    """A tone of 1 kHz in the noise is one of 1 kHz for a model that takes 8 kHz too."""
    from fairseq.tasks.hubert_pretraining import HubertPretrainingConfig, HubertPretrainingTask

    from fairseq_plugins.criterion import DaisyExitHeads

    times = numpy.arange(16000) / 16000
    soundfile.write(tmp_path / "tone.wav", 0.5 * numpy.sin(2 * numpy.pi * 1000 * times), 16000)
    (tmp_path / "noise.tsv").write_text(f"{tmp_path}\ntone.wav\t16000\n")
    for rate in (8000, 16000):
        task = HubertPretrainingTask(HubertPretrainingConfig(data=str(tmp_path), labels=[], sample_rate=rate))
        criterion = DaisyExitHeads(task, **{**SETTINGS, "noise_manifest": str(tmp_path / "noise.tsv")})
        (noise,) = criterion.noise.recordings
        assert len(noise) == rate
        assert int(torch.fft.rfft(noise).abs().argmax()) == 1000  # Hz, of one second


def test_pretraining_targets_come_at_the_tasks_label_rate(corpus, data, tmp_path):
    from fairseq_plugins.pretraining_model import DaisyPretrainingHubert, DaisyPretrainingHubertConfig
    from fairseq_plugins.pretraining_task import DaisyPretrainingConfig, DaisyPretrainingTask

    task = DaisyPretrainingTask.setup_task(DaisyPretrainingConfig(data=str(data), labels=["km"], label_rate=50.0))
    with pytest.raises(UsageError, match=r"model\.label_rate is 100 and task\.label_rate 50"):
        DaisyPretrainingHubert.build_model(DaisyPretrainingHubertConfig(label_rate=100.0), task)
    daisy.save(tiny_model(dataclasses.replace(POST_NORM, sample_rate=8000)), tmp_path / "start.safetensors")
    tiny = dict(
        label_rate=50.0, encoder_layers=4, encoder_embed_dim=32, encoder_ffn_embed_dim=48, encoder_attention_heads=4,
        conv_feature_layers="[(16,10,5)] + [(16,3,2)] * 4 + [(16,2,2)] * 2", final_dim=8, conv_pos=16,
        conv_pos_groups=4, warm_start=str(tmp_path / "start.safetensors"),
    )  # fmt: skip
    with pytest.raises(UsageError, match=r"start\.safetensors: takes audio at 8000 Hz"):
        DaisyPretrainingHubert.build_model(DaisyPretrainingHubertConfig(**tiny), task)
