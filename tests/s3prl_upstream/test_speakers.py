"""s3prl's speaker identification, which cuts recordings at random and caches lists of files."""

from pathlib import Path

import pytest
import soundfile
import torch

from tests.s3prl_upstream.conftest import begin_anew, lines, runs, waveform, weights, write_config

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def voxceleb(tmp_path):
    def corpus(name, speakers=3, seconds=0.5):
        root, listed = tmp_path / name, []
        for speaker in range(speakers):
            for split in (1, 1, 2, 3):
                path = f"id{10001 + speaker}/{name}/{len(listed):05d}.wav"
                (root / "dev" / "wav" / path).parent.mkdir(parents=True, exist_ok=True)
                wav = waveform(len(listed) + len(name), int(16000 * seconds) + 100 * len(listed))
                soundfile.write(root / "dev" / "wav" / path, wav.numpy(), 16000)
                listed.append(f"{split} {path}")
        (root / "list.txt").write_text("\n".join(listed) + "\n")
        sizes = {"max_timestep": 128000, "train_batch_size": 3, "eval_batch_size": 1, "num_workers": 0}
        return write_config(root, {"file_path": str(root), "meta_data": str(root / "list.txt"), **sizes}, steps=3)

    return corpus


def test_speaker_identification_on_cached_means_and_its_file_lists(launch, checkpoint, policy, voxceleb, tmp_path):
    """Means over time train as the frames do; and a list of files made for one corpus is not read for another."""
    import s3prl

    known = ("-m", "train", "-u", "daisy_local", "-k", checkpoint, "-g", policy, "-d", "voxceleb1")
    first, second = voxceleb("first"), voxceleb("second", seconds=0.7)
    options = ("--upstream_feature_normalize", "-c", first)
    launch(*known, *options, "-p", tmp_path / "frames")
    mean = ("--cache", tmp_path / "cache", "--cache-mean", "--cache-dtype", "float32")
    launch(*known, *options, "-p", tmp_path / "means", *mean)
    trained = [weights(tmp_path / name, "states-3.ckpt") for name in ("means", "frames")]
    assert torch.allclose(*trained, atol=1e-5)
    assert sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*.safetensors")) < 9 * 2000
    begin_anew(tmp_path / "frames")
    launch(*known, "-c", second, "-p", tmp_path / "frames")
    last = runs(tmp_path / "frames")[-1]["run"]
    assert {row["utterance"].split("-")[1] for row in lines(tmp_path / "frames") if row["run"] == last} == {"second"}
    assert not (Path(s3prl.__file__).parent / "downstream" / "voxceleb1" / ".cache").exists()


def test_random_crops_are_logged_once_and_told(launch, checkpoint, policy, voxceleb, tmp_path, capsys):
    """And do not fill the cache for ever: four epochs of six utterances, in two batches each."""
    config = voxceleb("crops")
    known = ("-m", "train", "-u", "daisy_local", "-k", checkpoint, "-g", policy, "-d", "voxceleb1", "-c", config)
    crop = "config.downstream_expert.datarc.max_timestep=6000,,config.runner.total_steps=8"
    launch(*known, "-p", tmp_path / "run", "-o", crop, "--cache", tmp_path / "cache")
    assert len([row for row in lines(tmp_path / "run") if row["split"] == "train"]) == 6
    told = capsys.readouterr().out
    assert told.count("comes back with other audio, as random crops do") == 1
    assert "such training audio is no longer added to the cache" in told
    of_dev = runs(tmp_path / "run")[0]["splits"]["dev"]["utterances"]
    first_epoch, until_noticed = 6, 3
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) <= of_dev + first_epoch + until_noticed
