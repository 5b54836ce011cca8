"""docs/tour.ipynb runs unchanged, makes true statements, and is small."""

import base64
import json
import re

import pytest

from benchmarks import tour

MAX_PICTURES_BYTES = 600_000
REPORT = """
import json
depths = [mean / num_layers for mean in mean_exits["forecast"]]
print(json.dumps({"depths": depths, "unit_errors": unit_errors, "entropies": entropies.mean(1).tolist()}))
"""


def list_outputs(cells):
    return [output for cell in cells for output in cell.get("outputs", ())]


def read_pictures(cells):
    """The PNG pictures of cells' outputs."""
    data = [output.get("data", {}) for output in list_outputs(cells)]
    return [base64.b64decode(of["image/png"]) for of in data if "image/png" in of]


def read_words(cells):
    """What each output says, without numbers."""
    return [re.sub(r"\d+(\.\d+)?", "0", "".join(output.get("text", ""))).split() for output in list_outputs(cells)]


def read_committed():
    return json.loads(tour.PATH.read_text(encoding="utf-8"))["cells"]


@pytest.fixture(scope="module")
def run():
    """The notebook's cells after a run, and what its variables hold."""
    for package in ("nbclient", "ipykernel", "matplotlib"):
        pytest.importorskip(package, reason="runs the notebook")
    import nbformat

    book = tour.read_tour()
    book.cells.append(nbformat.v4.new_code_cell(REPORT))
    tour.run_tour(book)
    return book.cells[:-1], json.loads(book.cells[-1].outputs[0]["text"])


def test_depth_follows_the_noise(run):
    _, values = run
    clean, _, _, five_db, _, minus_five_db = values["depths"]
    assert 0.4 < clean < 0.7
    assert clean < five_db < minus_five_db
    assert minus_five_db - clean > 0.2
    assert values["entropies"][0] > values["entropies"][-1] + 0.1  # nats: the last layer is surer than the first


def test_units_at_their_own_exits_are_the_full_models_more_often_than_at_one_layer(run):
    _, values = run
    early, cut = (values["unit_errors"][name] for name in ("at its own exit", "one layer for all"))
    assert max(early) < 0.5
    assert sum(early) < sum(cut)


def test_the_outputs_are_those_of_a_run(run):
    """Texts but for their numbers, whose last digits other machines may round otherwise; as many figures."""
    cells, _ = run
    assert len(read_pictures(read_committed())) == len(read_pictures(cells)) == 3
    assert read_words(read_committed()) == read_words(cells)


def test_it_is_small_and_shows_no_paths_and_no_warnings():
    pictures, outputs = read_pictures(read_committed()), list_outputs(read_committed())
    assert 50_000 < sum(map(len, pictures)) < MAX_PICTURES_BYTES
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)
    assert {output["output_type"] for output in outputs} == {"stream", "display_data"}
    assert {output.get("name", "stdout") for output in outputs} == {"stdout"}
    assert not re.search(r"/(?:home|root|tmp)/", json.dumps(outputs))
    assert 8 <= len(read_committed()) <= 12


def test_its_links_lead_somewhere():
    texts = ["".join(cell["source"]) for cell in read_committed()]
    links = re.findall(r"\]\(([^)#]+)", "\n".join(texts))
    assert len(links) >= 8
    assert all((tour.PATH.parent / link).is_file() for link in links)
