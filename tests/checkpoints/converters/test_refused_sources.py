"""Sources that no converter accepts, or accepts only on request."""

import io
import pickle

import pytest
import torch

from daisy import CheckpointError
from daisy.checkpoints.converters import convert, plugin, reading
from daisy.checkpoints.converters.fairseq_configuration import parse_conv_layers
from daisy.models import Backbone
from tests.conftest import POST_NORM
from tests.recognition.conftest import tiny_recogniser


def test_unknown_weights_and_options_are_refused_by_name(fairseq_model, tmp_path):
    _, state = fairseq_model
    state["model"]["encoder.layers.0.adapter.weight"] = torch.zeros(1)
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"no place in a HuBERT: encoder\.layers\.0\.adapter\.weight"):
        convert(tmp_path / "x.pt", allow_pickle=True)
    state["cfg"]["model"]["activation_fn"] = "relu"
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="activation_fn=relu is not supported, only gelu"):
        convert(tmp_path / "x.pt", allow_pickle=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty: the download or the copy broke off"),
        (b"this is text, not a model\n", "damaged, or no checkpoint at all|unpickling"),
    ],
)
def test_what_is_no_checkpoint(tmp_path, content, message):
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as error:
        convert(tmp_path / "x.pt", allow_pickle=True)
    assert str(error.value).startswith(str(tmp_path / "x.pt"))


def test_other_models_and_truncated_files(tmp_path):
    torch.save({"linear.weight": torch.zeros(2, 2)}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"not a checkpoint that daisy knows .* first keys are linear\.weight"):
        convert(tmp_path / "x.pt")
    torch.save(Backbone(POST_NORM).state_dict(), tmp_path / "y.pt")
    (tmp_path / "y.pt").write_bytes((tmp_path / "y.pt").read_bytes()[:-3000])
    with pytest.raises(CheckpointError, match="damaged, or no checkpoint at all"):
        convert(tmp_path / "y.pt")
    with pytest.raises(CheckpointError, match="no such file"):
        convert(tmp_path / "z.pt")


def test_a_name_on_the_hub_is_to_be_downloaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="a name on Hugging Face's hub, download it into a folder first"):
        convert("facebook/hubert-base-ls960")
    (tmp_path / "facebook").mkdir()
    with pytest.raises(CheckpointError, match="^facebook/hubert-base-ls960: no such file$"):
        convert("facebook/hubert-base-ls960")


class Harmful:
    def __reduce__(self):
        return (print, ("unpickled code ran",))


def dotted_call(path):
    """A protocol 4 pickle that reaches a function of the system through the name of a harmless package."""
    pickle_code = b"\x80\x04" + b"\x8c\x05torch" + b"\x8c\x09os.mkdir\x93".replace(b"\x09", b"\x08")
    return pickle_code + b"\x8c" + bytes([len(path)]) + path.encode() + b"\x85R."


def test_unpickling_never_calls_what_the_file_names(tmp_path, capsys):
    torch.save({"cfg": Harmful(), "model": {}}, tmp_path / "x.pt")
    made = tmp_path / "made"
    (tmp_path / "y.pt").write_bytes(dotted_call(str(made)))
    for name in ("x.pt", "y.pt"):
        for allowed in (False, True):
            with pytest.raises(CheckpointError):
                convert(tmp_path / name, allow_pickle=allowed)
    assert "unpickled code ran" not in capsys.readouterr().out
    assert not made.exists()
    payload = dotted_call(str(made))
    assert type(reading._StandInUnpickler(io.BytesIO(payload)).load()).__mro__[1] is reading.StandIn
    assert not made.exists()
    pickle.loads(payload)  # the payload is real
    assert made.exists()


@pytest.mark.parametrize("normalize", [True, False])
def test_references_in_a_configuration_are_followed(fairseq_model, tmp_path, normalize):
    _, state = fairseq_model
    kept = {k: v for k, v in state["model"].items() if not k.startswith(("final_proj", "label_embs"))}
    state["model"] = {f"w2v_encoder.w2v_model.{k}": v for k, v in kept.items()}
    outer = {"_name": "hubert_ctc", "w2v_args": state["cfg"], "normalize": "${task.normalize}"}
    state["cfg"] = {"model": outer, "task": {"normalize": normalize}}
    torch.save(state, tmp_path / "x.pt")
    assert convert(tmp_path / "x.pt", allow_pickle=True).backbone.config.normalize == normalize


@pytest.mark.parametrize(
    "harm",
    [
        lambda state: state["cfg"]["model"].update(encoder_layers="twelve"),
        lambda state: state["cfg"]["model"].update(conv_feature_layers=[1, 2]),
        lambda state: [state["model"].pop(key) for key in list(state["model"]) if "pos_conv" in key],
    ],
)
def test_malformed_checkpoints_are_refused_in_one_line(fairseq_model, tmp_path, harm):
    _, state = fairseq_model
    harm(state)
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(CheckpointError) as error:
        convert(tmp_path / "x.pt", allow_pickle=True)
    assert str(error.value).startswith(f"{tmp_path / 'x.pt'}: ")
    assert len(str(error.value).splitlines()) == 1


def test_settings_are_for_sources_that_need_them(fairseq_model, tmp_path):
    torch.save(fairseq_model[1], tmp_path / "x.pt")
    with pytest.raises(
        CheckpointError, match=r"tells its own num_heads; overrides are for weights without a configuration"
    ):
        convert(tmp_path / "x.pt", allow_pickle=True, overrides={"num_heads": "4"})
    torch.save({1: torch.zeros(1)}, tmp_path / "y.pt")
    with pytest.raises(CheckpointError, match=r"not a checkpoint that daisy knows"):
        convert(tmp_path / "y.pt")


def test_the_plugins_checkpoints_take_no_other_tokens(tmp_path):
    model = tiny_recogniser("conformer")
    task_state = {plugin.STATE_KEY: model.config()}
    torch.save({"model": model.state_dict(), "task_state": task_state}, tmp_path / "x.pt")
    assert convert(tmp_path / "x.pt").tokens == model.tokens
    (tmp_path / "dict.ltr.txt").write_text("| 5\nE 3\n")
    with pytest.raises(CheckpointError, match=r"x.pt: brings its own tokens, and others are given"):
        convert(tmp_path / "x.pt", tokens=tmp_path / "dict.ltr.txt")


def test_convolutions_are_parsed_not_evaluated():
    assert parse_conv_layers("[(512,10,5)] + [(512,3,2)] * 2") == ((512, 10, 5), (512, 3, 2), (512, 3, 2))
    for text in ("__import__('os').getcwd()", "[(1,2)]", "[(1,2,3)] * ", "7"):
        with pytest.raises(CheckpointError, match="not a list of"):
            parse_conv_layers(text)
