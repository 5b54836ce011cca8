import pytest
import torch

from daisy.calibration import traces
from daisy.calibration.traces import Traces
from daisy.errors import UsageError


@pytest.fixture
def table():
    generator = torch.Generator().manual_seed(0)
    change = torch.rand(4, 3, generator=generator)
    change[:, 0] = torch.nan
    return Traces(
        utterances=("a", "b", "a", "b"),
        groups=("x", "y", "x", "y"),
        conditions=("clean", "clean", "white 5 dB", "white 5 dB"),
        scores={"entropy": torch.rand(4, 3, generator=generator), "change": change},
        losses={"disagreement": torch.rand(4, 3, generator=generator)},
        weights=torch.tensor([1.0, 2.5, 1.0, 2.5]),
        costs=torch.tensor([1.0, 2.0, 3.5]),
        layers=(1, 2, 3),
    )


def test_what_is_written_is_read(table, tmp_path):
    traces.write_traces(table, tmp_path / "t.csv")
    again = traces.read_traces(tmp_path / "t.csv")
    for field in ("utterances", "groups", "conditions"):
        assert getattr(again, field) == getattr(table, field)
    for field in ("weights", "costs"):
        assert torch.equal(getattr(again, field), getattr(table, field))
    assert torch.equal(again.losses["disagreement"], table.losses["disagreement"])  # to the last digit
    assert torch.equal(again.scores["change"].nan_to_num(9), table.scores["change"].nan_to_num(9))
    assert set(again.scores) == {"entropy", "change"}


def test_anybodys_traces(tmp_path):
    """Exits at every second layer only, errors among words, no group, no cost, lines in any order."""
    lines = ["layer,utterance,posterior,errors,words", "4,u1,0.9,1,10", "2,u1,0.5,4,10", "2,u2,0.8,0,4", "4,u2,0.7,2,4"]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    table = traces.read_traces(tmp_path / "t.csv")
    assert table.groups == ("u1", "u2")
    assert table.costs.tolist() == [2.0, 4.0]
    torch.testing.assert_close(table.losses["errors"], torch.tensor([[0.4, 0.1], [0.0, 0.5]]))
    assert table.weights.tolist() == [10.0, 4.0]
    torch.testing.assert_close(table.scores["posterior"], torch.tensor([[0.5, 0.9], [0.8, 0.7]]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no column 'utterance'; it has nothing"),
        ("utterance,entropy\na,1\n", "has no column 'layer'; it has utterance, entropy"),
        ("utterance,layer\n", "has no lines below its header"),
        (
            "utterance,layer,change\na,1,\na,2,0.4\nb,1,0.5\nb,2,0.3\n",
            "column 'change' has empty cells at the first layer of some utterances only",
        ),
        ("utterance,layer,entropy\na,1,0.5\na,2\n", "line 3 has another number of fields"),
        ("utterance,layer,entropy\na,one,0.5\n", "utterance 'a' has a layer that is no whole number"),
        (
            "utterance,layer,entropy\na,1,0.5\na,2,0.4\nb,1,0.5\n",
            "utterance 'b' has the layers [1], the first",
        ),
        ("utterance,layer,entropy\na,1,0.5\na,1,0.4\n", "utterance 'a' has the layers [1, 1]"),
        ("utterance,layer,entropy\na,1,low\n", "column 'entropy' holds what is no number"),
        ("utterance,layer,loss\na,1,0.5\na,2,\n", "column 'loss' has empty or infinite cells"),
        (
            "utterance,layer,entropy\na,1,0.5\na,2,\nb,1,1\nb,2,1\n",
            "column 'entropy' has infinite cells, or empty ones after",
        ),
        ("utterance,layer,entropy\na,1,inf\na,2,1\n", "column 'entropy' has infinite cells"),
        ("utterance,layer,errors,words\na,1,1,5\na,2,1,6\n", "column 'words' differs between the layers"),
        ("utterance,layer,errors,words\na,1,1,0\na,2,1,0\n", "must be numbers of at least 0, some above"),
        ("utterance,layer,loss,cost\na,1,1,2\na,2,1,2\n", "cost must be above 0 and rise from layer to layer"),
    ],
)
def test_what_is_no_table_is_refused_in_one_line(tmp_path, text, message):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(UsageError) as error:
        traces.read_traces(tmp_path / "t.csv")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_runs_of_a_network_with_one_exit(tmp_path):
    (tmp_path / "t.csv").write_text("utterance,layer,entropy,loss\na,12,0.5,0.25\nb,12,0.4,0.75\n")
    runs = traces.read_traces(tmp_path / "t.csv")
    assert runs.layers == (12,)
    assert runs.losses["loss"].tolist() == [[0.25], [0.75]]
    traces.write_traces(runs, tmp_path / "again.csv")
    assert traces.read_traces(tmp_path / "again.csv").scores["entropy"].tolist() == runs.scores["entropy"].tolist()


def test_halves_share_no_group():
    names = tuple(str(index) for index in range(100))
    table = Traces(
        utterances=names,
        groups=tuple(str(index // 7) for index in range(100)),
        conditions=("clean",) * 100,
        scores={},
        losses={},
        weights=torch.ones(100),
        costs=torch.ones(3),
        layers=(1, 2, 3),
    )
    first, second = table.halves(0)
    assert not set(first.groups) & set(second.groups)
    assert len(first) + len(second) == 100
    assert set(first.utterances) != set(table.halves(1)[0].utterances)


def test_join_and_select_are_inverse(table):
    parts = [table.of_condition("clean"), table.of_condition("white 5 dB")]
    again = traces.join_traces(parts)
    assert again.utterances == table.utterances
    assert torch.equal(again.losses["disagreement"], table.losses["disagreement"])
    assert table.of_groups(["y"]).utterances == ("b", "b")
