"""Calibration, noise curves and replay from the command line, on a tiny model and a little generated speech."""

import csv
import json
import shutil
import subprocess

import numpy
import pytest
import soundfile

import daisy
from daisy import EarlyExitEncoder, PolicyError, audio, policies
from daisy.policies import read_policy, write_policy
from tests.cli.running import run
from tests.conftest import tiny_model


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("curves")
    daisy.save(tiny_model(), folder / "tiny.safetensors")
    daisy.save(tiny_model(seed=5), folder / "other.safetensors")
    generator = numpy.random.default_rng(0)
    lines = ["path,speaker"]
    for index in range(24):
        length = int(generator.integers(6000, 14000))
        shape = 1 + numpy.sin(numpy.arange(length) / generator.uniform(200, 2000))
        path = folder / "speech" / f"{index}.wav"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, 0.1 * shape * generator.standard_normal(length), 16000)
        lines.append(f"speech/{index}.wav,s{index % 8}")
    (folder / "speakers.csv").write_text("\n".join(lines) + "\n")
    (folder / "rain").mkdir()
    soundfile.write(folder / "rain" / "0.wav", 0.1 * generator.standard_normal(20000), 16000)
    return folder


CHROMIUM = shutil.which("chromium")
NAMES = "entropy,plateau,forecast,fixed"
SPEAKERS = ("--speakers", "speakers.csv")


def test_calibrate_to_a_depth_and_extract_with_the_file(place):
    done = run("calibrate", "speech", "-c", "tiny.safetensors", "--depth", "0.6", "-o", "p.json", *SPEAKERS, cwd=place)
    assert done.returncode == 0, done.stderr
    assert "note: forecast was learnt from 8 speakers" in done.stderr
    content = json.loads((place / "p.json").read_text())
    assert content["policy"]["name"] == "forecast"
    assert len((place / "p.json").read_text().splitlines()) < 120  # the weights do not fill pages
    assert content["checkpoint"]["digest"] == daisy.checkpoints.format.digest(place / "tiny.safetensors")
    assert content["data"]["num_recordings"] == 24
    assert content["data"]["num_speakers"] == 8
    attained = content["attained"]["conditions"][0]
    assert attained["condition"] == "all"
    assert attained["exit_layer_low"] <= attained["exit_layer"] <= attained["exit_layer_high"]
    done = run("extract", "speech", "-c", "tiny.safetensors", "-p", "p.json", "-o", "out", cwd=place)
    assert done.returncode == 0, done.stderr
    totals = json.loads((place / "out" / "index.json").read_text())["totals"]
    assert totals["mean_exit_layer"] == pytest.approx(attained["exit_layer"], abs=0.6)  # as if on other audio
    assert "24 of them were finished before" in run(
        "extract", "speech", "-c", "tiny.safetensors", "-p", "p.json", "-o", "out", cwd=place
    ).stdout  # fmt: skip


def test_a_policy_of_another_model_is_refused_by_name(place):
    write_policy(
        place / "q.json",
        policies.Entropy(threshold=1.0),
        checkpoint="tiny",
        digest="0" * 64,
        target={},
        attained={},
        data={},
    )
    done = run("extract", "speech", "-c", "other.safetensors", "-p", "q.json", "-o", "no", cwd=place)
    assert done.returncode == 2
    assert "q.json: was calibrated for tiny (000000000000), not for other" in done.stderr
    assert not (place / "no").exists()
    done = run("extract", "speech", "-p", "q.json", "--set", "threshold=1", "-o", "no", cwd=place)
    assert "a policy file is calibrated" in done.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a policy file"),
        ("[]", "not a policy file"),
        ('{"format_version": 9, "policy": {}, "checkpoint": {}}', "format version 9"),
        ('{"format_version": 1, "policy": {}, "checkpoint": {"digest": "x"}}', "has its name and settings"),
    ],
)
def test_damaged_policy_files(tmp_path, text, message):
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(PolicyError, match=message):
        read_policy(tmp_path / "p.json", checkpoint="m", digest="x")


def test_one_speaker_gives_no_intervals(place):
    call = ("-c", "tiny.safetensors", "--depth", "0.6", "-p", "entropy", *SPEAKERS, "-o", "i.json")
    one = run("calibrate", "speech/0.wav", "speech/8.wav", "speech/16.wav", *call, cwd=place)
    assert "all of one speaker, so that there are no intervals" in one.stdout
    assert " to " not in one.stdout.split("no intervals")[1]
    eight = run("calibrate", "speech", *call, cwd=place)
    assert "95 % intervals, from resampling speakers:" in eight.stdout
    assert " to " in eight.stdout.split("speakers:")[1]


def test_a_stride_is_part_of_the_policy(place):
    call = ("calibrate", "speech", "-c", "tiny.safetensors", "--depth", "0.5", "-p", "entropy", "--score-stride", "4")
    assert run(*call, "-o", "s.json", cwd=place).returncode == 0
    policy, stride = read_policy(
        place / "s.json", checkpoint="tiny", digest=daisy.checkpoints.format.digest(place / "tiny.safetensors")
    )
    assert stride == 4
    model = daisy.load(place / "tiny.safetensors")
    encoder = EarlyExitEncoder(model.backbone, model.heads, policy, score_stride=stride)
    exits = [int(encoder([audio.read(path)]).exit_layer) for path in sorted((place / "speech").glob("*.wav"))]
    attained = json.loads((place / "s.json").read_text())["attained"]["conditions"][0]["exit_layer"]
    assert sum(exits) / 24 == pytest.approx(attained)


def test_whose_units_a_forecast_keeps_is_in_the_file(place):
    call = ("calibrate", "speech", "-c", "tiny.safetensors", "--depth", "0.5", "-p", "forecast", *SPEAKERS)
    call += ("--snr", "clean,0", "--noise", "rain", "--full-runs", "units.runs")
    contents = {}
    for units in ("same", "clean", "both"):
        done = run(*call, "--units", units, "-o", f"{units}.json", cwd=place)
        assert done.returncode == 0, done.stderr
        contents[units] = json.loads((place / f"{units}.json").read_text())
    assert [content["target"].get("units") for content in contents.values()] == [None, "clean", "both"]
    gains = [numpy.array(content["policy"]["intercepts"][0]) for content in contents.values()]
    assert not numpy.allclose(gains[0], gains[1], atol=0.01)
    # Each is the mean gain less weights of scores, which are linear in what is learnt.
    numpy.testing.assert_allclose(gains[2], (gains[0] + gains[1]) / 2, atol=1e-6)


def test_whose_units_agreement_predicts_is_in_the_file(place):
    call = ("calibrate", "speech", "-c", "tiny.safetensors", "--depth", "0.5", "-p", "agreement", *SPEAKERS)
    call += ("--snr", "clean,0", "--noise", "rain", "--full-runs", "units.runs")
    contents = []
    for units in ("same", "clean", "both"):
        done = run(*call, "--units", units, "-o", f"a-{units}.json", cwd=place)
        assert done.returncode == 0, done.stderr
        contents.append(json.loads((place / f"a-{units}.json").read_text()))
    assert [content["target"].get("units") for content in contents] == [None, "clean", "both"]
    assert len({tuple(content["policy"]["threshold"]) for content in contents}) == 3


def test_a_risk_that_cannot_be_certified_gives_never(place):
    call = ("calibrate", "speech", "-c", "tiny.safetensors", "--risk", "0.01", "-o", "n.json", *SPEAKERS)
    done = run(*call, cwd=place)
    assert done.returncode == 0, done.stderr
    assert "no setting of forecast is certified at a risk of 0.01: the file says never" in done.stdout
    assert "without --speakers" not in done.stderr
    assert json.loads((place / "n.json").read_text())["policy"] == {"name": "never"}


def test_babble_is_no_independent_noise(place):
    call = ("calibrate", "speech", "-c", "tiny.safetensors", "--snr", "5", "--noise", "babble", "-p", "entropy")
    done = run(*call, "--risk", "0.97", "--delta", "0.3", "-o", "b.json", *SPEAKERS, cwd=place)
    assert done.returncode == 0, done.stderr
    assert done.stderr == (
        "note: babble is made of the other recordings: the risk is bounded if their speakers count as independent\n"
    )


def test_a_loose_risk_is_certified_in_every_condition(place):
    call = ("calibrate", "speech", "-c", "tiny.safetensors", "--risk", "0.97", "--delta", "0.3", "-p", "entropy")
    done = run(*call, "-o", "r.json", "--snr", "clean,5", "--noise", "rain", cwd=place)
    assert done.returncode == 0, done.stderr
    assert "without --speakers each recording counts as a speaker of its own" in done.stderr
    assert "babble" not in done.stderr
    content = json.loads((place / "r.json").read_text())
    assert content["policy"]["name"] == "entropy"
    assert [line["condition"] for line in content["attained"]["conditions"]] == ["all", "clean", "rain 5 dB"]
    # two thirds of 24 recordings, in two conditions
    assert (
        sum(row["num_runs"] for row in content["attained"]["certified"]["by_exit_layer"]) == 32
    )  # 16 recordings, two conditions


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("calibrate", "speech", "-o", "x.json"), "give either --depth or --risk"),
        (("calibrate", "speech", "-o", "x.json", "--depth", "2"), "depth must be above 0 and at most 1, found 2"),
        (
            ("calibrate", "speech", "-o", "x.json", "--risk", "0.1", "--snr", "5"),
            "signal-to-noise ratios without noise",
        ),
        (("calibrate", "speech", "-o", "x.json", "--depth", "0.5", "--snr", "loud"), "takes clean and numbers in dB"),
        (
            ("calibrate", "speech", "-o", "x.json", "--depth", "0.5", "-p", "never"),
            "unknown policy to calibrate 'never'",
        ),
        (
            ("calibrate", "speech", "-o", "x.json", "--depth", "0.5", "--units", "both", "-p", "plateau"),
            "--units goes with policies that learn units (forecast, agreement), not plateau",
        ),
        (("calibrate", "speech", "-o", "x.json", "--risk", "0.1", "--units", "clean"), "--units goes with --depth"),
        (("calibrate", "rain", "-o", "x.json", "--risk", "0.1"), "at least 4 speakers, found 1"),
        (("calibrate", "rain", "-o", "x.json", "--depth", "0.5", *SPEAKERS), "names no speaker of"),
        (
            ("calibrate", "speech", "-o", "x.json", "--depth", "0.5", "--units", "clean", "--of", "kl_nats"),
            "--units clean is of losses against the full model",
        ),
        (("noise-curve", "speech", "-o", "x", "--noise", "white", "--noise", "white"), "noise white is given twice"),
        (("noise-curve", "speech", "-o", "x", "--snr", "5"), "signal-to-noise ratios without noise"),
        (("noise-curve", "speech", "-o", "x", "--policies", "entropi"), "unknown policy to compare 'entropi'"),
        (("noise-curve", "speech", "-o", "x", "--depths", "30"), "depth must be above 0 and at most 1, found 30"),
        (
            ("noise-curve", "speech", "-o", "x", "--depths", "0.3;0.5"),
            "--depths takes numbers with commas between them",
        ),
        (("noise-curve", "rain", "-o", "x"), "give two at least"),
        (("replay", "speakers.csv", "-o", "x"), "has no column 'utterance'"),
        (("replay", "gone.csv", "-o", "x"), "cannot be read as CSV"),
    ],
)
def test_refusals_are_one_line(place, arguments, message):
    model = ("-c", "tiny.safetensors") if arguments[0] != "replay" else ()
    done = run(*arguments, *model, cwd=place)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.fixture(scope="module")
def curves(place):
    call = (
        "noise-curve",
        "speech",
        "-c",
        "tiny.safetensors",
        "--noise",
        "rain",
        "--noise",
        "white",
        "--snr",
        "clean,10,0",
    )
    options = ("--clipping", "5", "--policies", NAMES, "--depths", "0.4,0.7", *SPEAKERS)
    done = run(*call, *options, "-o", "curves", "--report", "curves/page.html", cwd=place)
    assert done.returncode == 0, done.stderr
    return place / "curves"


def test_replay_gives_the_same_table(curves):
    call = ("replay", "traces.csv", "-o", "again", "--policies", NAMES, "--loss", "disagreement")
    done = run(*call, "--depths", "0.4,0.7", cwd=curves)
    assert done.returncode == 0, done.stderr
    assert (curves / "again" / "study.csv").read_text() == (curves / "study.csv").read_text()


def test_replay_of_one_exit_is_refused(tmp_path):
    lines = (f"{name},{name},12,0.{place},0.5\n" for place, name in enumerate("abcd", 1))
    (tmp_path / "one.csv").write_text("utterance,group,layer,entropy,loss\n" + "".join(lines))
    done = run("replay", "one.csv", "-o", "x", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.endswith(" cannot be calibrated: there is one exit, at the last layer\n")
    assert done.stderr.count("\n") == 1


def test_the_table_has_every_condition_and_the_static_cut(curves):
    with open(curves / "study.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    conditions = {row["condition"] for row in rows}
    assert conditions == {"all", "clean", "rain 10 dB", "rain 0 dB", "white 10 dB", "white 0 dB", "clipping 5 %"}
    assert {row["policy"] for row in rows} == {"entropy", "plateau", "forecast", "fixed", "hindsight"}
    for row in rows:
        assert sum(json.loads(row["histogram"])) == int(row["num_runs"])
        difference = float(row["disagreement_fixed"]) - float(row["disagreement"])
        assert difference == pytest.approx(float(row["disagreement_gain"]))


def test_the_page_needs_no_network(curves):
    page = (curves / "page.html").read_text()
    assert "http" not in page.replace("http-equiv", "")
    assert page.count("<figure>") >= 7  # frontier, two noises, four losses
    assert "daisy noise-curve speech -c tiny.safetensors" in page
    assert "Does the exit follow the noise?" in page


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium to open the page")
@pytest.mark.parametrize("width", [1200, 500])
def test_a_browser_shows_the_page_without_complaint(curves, tmp_path, width):
    quiet = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
    options = (f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},2000", "--enable-logging=stderr")
    picture = tmp_path / "page.png"
    call = [CHROMIUM, *quiet, *options, f"--screenshot={picture}", (curves / "page.html").as_uri()]
    done = subprocess.run(call, capture_output=True, text=True, timeout=120)
    assert picture.stat().st_size > 50_000  # figures and text, not a blank page
    assert "CONSOLE" not in done.stderr, done.stderr


def test_unreadable_recordings_are_listed_and_left_out(place):
    (place / "speech" / "bad.wav").write_text("no audio")
    done = run("calibrate", "speech", "-c", "tiny.safetensors", "--depth", "0.6", "-o", "b.json", cwd=place)
    (place / "speech" / "bad.wav").unlink()
    assert done.returncode == 1
    assert "bad.wav: not readable as audio" in done.stderr
    assert json.loads((place / "b.json").read_text())["data"]["num_recordings"] == 24
