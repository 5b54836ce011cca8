"""Tokens of the plugin's recognisers, and the information in their checkpoints without other files."""

import io

import pytest

import daisy
from daisy import checkpoints
from daisy.checkpoints.converters import plugin
from daisy.errors import CheckpointError, UsageError
from daisy.models import CTCHeads, CTCHeadsConfig, Tokens
from tests.conftest import POST_NORM, randomise, tiny_model
from tests.fairseq_plugins import conftest  # noqa: F401  skips where fairseq is missing
from tests.fairseq_plugins.ctc_models import LETTERS, make_hubert, make_task


def train_pieces(texts, size):
    sentencepiece = pytest.importorskip("sentencepiece", reason="needs sentencepiece")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, vocab_size=size, model_type="bpe", minloglevel=2
    )
    return model.getvalue()


def test_pieces_of_a_sentencepiece_model_are_tokens(tmp_path):
    texts = ["GO ON", "STOP NOW", "GO NOW AND STOP", "ON AND ON"] * 5
    model = train_pieces(texts, 22)
    from fairseq.data import Dictionary

    from fairseq_plugins.recognition import read_tokens

    (tmp_path / "m").write_bytes(model)
    daisy.audio.write_transcripts(tmp_path / "train.tsv", texts, "spm", tmp_path / "m")
    assert (tmp_path / "spm.model").read_bytes() == model
    (tmp_path / "other").write_bytes(train_pieces(texts, 20))
    with pytest.raises(UsageError, match=r"spm\.model: is another model than .*other, and an earlier split's"):
        daisy.audio.write_transcripts(tmp_path / "valid.tsv", texts, "spm", tmp_path / "other")
    assert (tmp_path / "spm.model").read_bytes() == model
    task = make_task(tmp_path, labels="spm")
    task.target_dictionary = Dictionary.load(str(tmp_path / "dict.spm.txt"))
    tokens = read_tokens(task)
    line = (tmp_path / "train.spm").read_text().splitlines()[2]
    encoded = task.target_dictionary.encode_line(line, append_eos=False, add_if_not_exist=False).tolist()
    assert encoded == tokens.encode("GO NOW AND STOP")
    assert (tokens.to_text(encoded), tokens.blank) == ("GO NOW AND STOP", 0)
    task.target_dictionary = make_task(tmp_path).target_dictionary
    with pytest.raises(UsageError, match="of its pieces are not in the dictionary"):
        read_tokens(task)


@pytest.mark.parametrize(("training", "kept"), [("frozen", {"heads": "learnt before"}), ("joint", {})])
def test_notes_on_heads_are_kept_with_the_heads(training, kept, tmp_path):
    source = tiny_model()
    source.provenance = {"backbone": "small", "heads": "learnt before"}
    _, task = make_hubert(tmp_path, source=source, training=training)
    provenance = task.state.state_dict[plugin.STATE_KEY]["provenance"]
    assert provenance == {"backbone": "small", **kept, "recogniser": f"{training}, fairseq plugin daisy_ctc"}


def test_checkpoints_load_without_the_files_that_they_came_from(tmp_path):
    model, task = make_hubert(tmp_path, training="frozen")
    (tmp_path / "source.safetensors").unlink()
    again = type(model).build_model(model.cfg, task)
    again.load_state_dict(model.state_dict())
    kept = task.state.state_dict[plugin.STATE_KEY]
    assert kept["provenance"]["recogniser"] == "frozen, fairseq plugin daisy_ctc"
    assert checkpoints.build(kept).tokens.symbols[4:] == tuple(LETTERS)
    with pytest.raises(CheckpointError, match="no such"):
        type(model).build_model(model.cfg, make_task(tmp_path))


def test_error_rates_are_logged_for_each_exit():
    from fairseq.logging import metrics

    from fairseq_plugins.ctc_criterion import DaisyCtcCriterion

    log = {"loss": 26.0, "ntokens": 13, "nsentences": 3, "sample_size": 13, "ctc_2": 13.0, "ctc_4": 6.5}
    errors = {"c_total": 20, "w_total": 4, "c_errors_2": 10, "c_errors_4": 5, "w_errors_2": 4, "w_errors_4": 1}
    with metrics.aggregate(new_root=True) as meters:
        DaisyCtcCriterion.reduce_metrics([{**log, **errors}, {**log, **errors}])
    values = meters.get_smoothed_values()
    assert (values["loss"], values["ctc_2"], values["ctc_4"]) == (2.0, 1.0, 0.5)
    assert (values["uer_2"], values["uer_4"], values["uer"]) == (50.0, 25.0, 25.0)
    assert (values["wer_2"], values["wer_4"], values["wer"]) == (100.0, 25.0, 25.0)
    assert DaisyCtcCriterion.logging_outputs_can_be_summed()


@pytest.mark.parametrize(("num_heads", "taken"), [(4, [4]), (2, [])])
def test_exits_with_attention_are_taken_over_with_as_many_heads(num_heads, taken):
    """Weights have the same shapes whatever the number of heads, and compute something else."""
    from fairseq_plugins.recognition import take_over_exits

    source = tiny_model(POST_NORM)
    source.tokens = Tokens.characters("".join(LETTERS[1:]))
    size = dict(width=32, num_tokens=len(source.tokens), final_branch="attention")
    source.ctc = randomise(CTCHeads(CTCHeadsConfig(layers=(4,), num_heads=4, **size)), 9)
    exits = CTCHeads(CTCHeadsConfig(layers=(2, 4), num_heads=num_heads, **size))
    assert take_over_exits(exits, source, source.tokens) == taken
