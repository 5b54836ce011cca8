"""docs/tour.ipynb runs as it stands, says what is true, and is small."""

import base64
import json
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
PATH = DOCS / "tour.ipynb"
MAX_PICTURES_BYTES = 600_000
MAX_SEC = 300
"""Of a cell, on machines that are busy."""
REPORT = """
import json
depths = {str(snr): mean / num_layers for snr, mean in zip(SNRS_DB, mean_exits["forecast"], strict=True)}
print(json.dumps({"depths": depths, "unit_errors": unit_errors, "entropies": entropies.mean(1).tolist(), "exits": exits}))
"""


def read_pictures(book):
    """The PNG pictures of a notebook's outputs."""
    outputs = (output for cell in book["cells"] for output in cell.get("outputs", ()))
    return [base64.b64decode(output["data"]["image/png"]) for output in outputs if "image/png" in output.get("data", {})]


@pytest.fixture(scope="module")
def run():
    """The notebook after a run, and what its variables hold."""
    nbclient = pytest.importorskip("nbclient", reason="runs notebooks")
    pytest.importorskip("ipykernel", reason="runs notebooks")
    pytest.importorskip("matplotlib", reason="draws the notebook's figures")
    import nbformat

    book = nbformat.read(PATH, as_version=4)
    book.cells.append(nbformat.v4.new_code_cell(REPORT))
    nbclient.NotebookClient(book, timeout=MAX_SEC, resources={"metadata": {"path": DOCS}}).execute()
    return book, json.loads(book.cells.pop().outputs[0]["text"])


def test_depth_follows_the_noise(run):
    _, values = run
    depths = values["depths"]
    assert list(depths) == ["None", "20", "10", "5", "0", "-5"]
    assert 0.4 < depths["None"] < 0.7
    assert depths["-5"] > depths["5"] > depths["None"]
    assert depths["-5"] - depths["None"] > 0.1
    assert values["entropies"][0] > values["entropies"][-1] + 0.5  # nats: the last layer is surer than the first


def test_units_at_their_own_exits_are_the_full_models_more_often_than_at_one_layer(run):
    _, values = run
    early, cut = (values["unit_errors"][name] for name in ("at its own exit", "one layer for all"))
    assert max(early) < 0.5
    assert sum(early) < sum(cut)


def test_the_outputs_are_those_of_a_run(run):
    """Texts to the number of lines, as other machines may round the last digit otherwise; figures to their number."""
    book, _ = run
    committed = json.loads(PATH.read_text(encoding="utf-8"))
    assert len(read_pictures(committed)) == len(read_pictures(book)) == 3
    for before, after in zip(committed["cells"], book.cells, strict=True):
        texts = [
            ["".join(output["text"]) for output in cell.get("outputs", ()) if output["output_type"] == "stream"]
            for cell in (before, after)
        ]
        assert [len(text.splitlines()) for text in texts[0]] == [len(text.splitlines()) for text in texts[1]]
        assert [re.sub(r"[\d.]+", "0", text).split() for text in texts[0]] == [
            re.sub(r"[\d.]+", "0", text).split() for text in texts[1]
        ]


def test_it_is_small_and_shows_no_paths_and_no_warnings():
    committed = json.loads(PATH.read_text(encoding="utf-8"))
    assert sum(map(len, read_pictures(committed))) < MAX_PICTURES_BYTES
    assert all(picture.startswith(b"\x89PNG") for picture in read_pictures(committed))
    outputs = [output for cell in committed["cells"] for output in cell.get("outputs", ())]
    assert {output["output_type"] for output in outputs} <= {"stream", "display_data"}
    assert {output.get("name", "stdout") for output in outputs} == {"stdout"}
    assert not re.search(r"/(?:home|root|tmp)/", json.dumps(outputs))
    assert 8 <= len(committed["cells"]) <= 12


def test_its_links_lead_somewhere():
    texts = ["".join(cell["source"]) for cell in json.loads(PATH.read_text("utf-8"))["cells"]]
    links = re.findall(r"\]\(([^)#]+)", "\n".join(texts))
    assert len(links) >= 8
    assert all((DOCS / link).is_file() for link in links)
