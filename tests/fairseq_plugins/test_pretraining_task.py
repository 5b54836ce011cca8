"""What a pre-training hears: crops, speeds, noise and other talkers, and the labels that go with them."""

import itertools

import numpy
import pytest
import soundfile
import torch

from daisy.errors import UsageError


def dataset(cfg):
    from fairseq_plugins.pretraining_task import DaisyPretrainingTask

    task = DaisyPretrainingTask.setup_task(cfg)
    task.load_dataset("train")
    task.load_dataset("valid")
    return task.datasets["train"], task.datasets["valid"]


def test_labels_follow_crop_and_speed(task_config):
    """The corpus's labels count frames modulo 7: a crop must start at a label, a change of speed must stretch them."""
    task_config.speeds = [0.5]
    train, valid = dataset(task_config)
    assert type(valid).__name__ == "HubertDataset"
    item = train[11]  # 1.6 s, cropped to 0.25 s at half speed: 0.5 s
    assert len(item["source"]) == 8000
    labels = (item["label_list"][0] - 4).tolist()  # after fairseq's special symbols
    assert len(labels) in (25, 26)
    steps = [(b - a) % 7 for a, b in itertools.pairwise(labels)]
    assert set(steps) == {0, 1}
    assert abs(sum(steps) - len(labels) // 2) <= 1
    again = dataset(task_config)[0]
    assert torch.equal(again[11]["source"], item["source"])
    again.set_epoch(2)
    assert not torch.equal(again[11]["source"], item["source"])


def find_crop(train, index):
    """At which label the stretch begins that is heard of a recording, and the labels that come with it."""
    source, (labels,) = train[index]["source"], train[index]["label_list"]
    whole = train.dataset[index]["source"]
    places = [start for start in range(0, len(whole) - 8000 + 1, 320)
              if torch.equal(whole[start : start + 8000], source)]  # fmt: skip
    assert len(places) == 1
    return places[0] // 320, labels


def test_a_cropped_stretch_carries_its_own_labels(task_config):
    train, _ = dataset(task_config)
    first, labels = find_crop(train, 11)
    assert torch.equal(labels, train.dataset[11]["label_list"][0][first : first + 25])


def test_what_is_heard_is_drawn_by_seed_and_epoch(task_config):
    """Seed 1 has the crops that there were before seeds had a part; who resumes in epoch 2 has those of epoch 2."""
    places = {}
    for seed in (1, 2, 2**31):
        task_config.seed = seed
        train, _ = dataset(task_config)
        for epoch in (1, 2):
            train.set_epoch(epoch)
            places[seed, epoch] = [find_crop(train, index)[0] for index in range(8, 12)]
    assert places == {
        (1, 1): [11, 0, 37, 1],
        (1, 2): [31, 9, 4, 49],
        (2, 1): [27, 12, 40, 13],
        (2, 2): [37, 18, 3, 13],
        (2**31, 1): [38, 27, 25, 53],
        (2**31, 2): [14, 44, 48, 14],
    }
    resumed, _ = dataset(task_config)
    resumed.set_epoch(2)
    assert find_crop(resumed, 11)[0] == places[2**31, 2][-1]


def test_a_batch_is_cropped_at_places_drawn_by_seed_and_epoch(task_config):
    task_config.random_crop, task_config.max_sample_size = True, 16000
    train, _ = dataset(task_config)
    samples = [train[index] for index in (0, 3, 4)]  # of 0.5, 0.8 and 0.9 s: cropped to the shortest

    def crop():
        return train.collater(samples)["net_input"]["source"]

    first = crop()
    assert first.shape == (3, 8000)
    torch.rand(3), numpy.random.rand(5)  # others' draws
    assert torch.equal(crop(), first)
    after = numpy.random.get_state()[1].tolist()
    train.set_epoch(2)
    assert not torch.equal(crop(), first)
    assert numpy.random.get_state()[1].tolist() == after


def test_nobody_is_another_talker_of_himself(task_config, tmp_path):
    """A low tone, which a balanced manifest lists often, and a high one, each with the other behind it."""
    times = torch.arange(8000) / 16000
    for name, frequency in (("low", 1000), ("high", 3000)):
        soundfile.write(tmp_path / f"{name}.wav", 0.1 * torch.sin(2 * torch.pi * frequency * times).numpy(), 16000)
    for split in ("train", "valid"):
        lines = ["low.wav\t8000"] * 3 + ["high.wav\t8000"]
        (tmp_path / f"{split}.tsv").write_text("\n".join([str(tmp_path), *lines, ""]))
        (tmp_path / f"{split}.km").write_text(f"{'1 ' * 25}\n" * 4)
    (tmp_path / "dict.km.txt").write_text("1 1\n")
    task_config.data, task_config.talkers_prob = str(tmp_path), 1.0
    train, _ = dataset(task_config)
    heard = {0: set(), 3: set()}
    for epoch in range(1, 21):
        train.set_epoch(epoch)
        for index, frequencies in heard.items():
            behind = train[index]["source"] - train.dataset.get_audio(index)
            frequencies.add(2 * int(torch.fft.rfft(behind).abs().argmax()))
    assert heard == {0: {3000}, 3: {1000}}
    for split in ("train", "valid"):
        (tmp_path / f"{split}.tsv").write_text("\n".join([str(tmp_path), *lines[:3], ""]))
        (tmp_path / f"{split}.km").write_text(f"{'1 ' * 25}\n" * 3)
    with pytest.raises(UsageError, match=r"talkers_prob is 1.0, and there is one recording to draw from"):
        dataset(task_config)


def test_what_is_heard_is_noisy_and_cached_audio_changes_nothing(task_config, corpus):
    task_config.noise_manifest, task_config.noise_prob = str(corpus / "data" / "noise.tsv"), 1.0
    noisy, _ = dataset(task_config)
    task_config.cache_audio = True
    cached, _ = dataset(task_config)
    for _ in range(2):
        assert torch.equal(noisy[3]["source"], cached[3]["source"])
    task_config.noise_prob = 0.0
    clean, _ = dataset(task_config)
    assert not torch.allclose(clean[3]["source"], noisy[3]["source"], atol=1e-3)
    assert torch.equal(clean[3]["label_list"][0], noisy[3]["label_list"][0])


def test_settings_that_cannot_be_met_are_refused(task_config):
    task_config.noise_prob = 0.5
    with pytest.raises(UsageError, match="noise_prob is 0.5, and there is nothing to draw from"):
        dataset(task_config)
    task_config.noise_prob, task_config.label_rate = 0.0, 49.9
    with pytest.raises(UsageError, match="label_rate must divide the sample rate"):
        dataset(task_config)
