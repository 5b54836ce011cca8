"""Requirements on the documentation of public names, and a check that its examples run."""

import dataclasses
import doctest
import importlib.util
import inspect
import re

import pytest

import daisy

PACKAGES = (
    "daisy",
    "daisy.audio",
    "daisy.calibration",
    "daisy.checkpoints",
    "daisy.checkpoints.converters",
    "daisy.distributed.extraction",
    "daisy.evaluation",
    "daisy.extraction",
    "daisy.integrations",
    "daisy.models",
    "daisy.policies",
    "daisy.training",
    "daisy.units",
    *(("daisy.integrations.lhotse",) if importlib.util.find_spec("lhotse") else ()),
)
MIN_EXAMPLES = 20


def public_objects():
    """Every class and function of our own that a package exports, once, by its full name."""
    objects = {}
    for package in PACKAGES:
        module = importlib.import_module(package)
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.isfunction(value) or inspect.isclass(value):
                objects[f"{value.__module__}.{value.__qualname__}"] = value
    return objects


OBJECTS = public_objects()


@pytest.mark.parametrize("package", PACKAGES)
def test_all_is_sorted_and_whole(package):
    module = importlib.import_module(package)
    assert list(module.__all__) == sorted(module.__all__)
    assert all(hasattr(module, name) for name in module.__all__)
    assert set(module.__all__) <= set(dir(module))


def parameters(value):
    """Names of what a function, or a class when it is made, takes."""
    if inspect.isclass(value) and (
        dataclasses.is_dataclass(value) or issubclass(value, tuple) or "__init__" not in vars(value)
    ):
        return []  # records describe each field below it
    signature = inspect.signature(value)
    return [name for name, parameter in signature.parameters.items() if name not in ("self", "cls")]


@pytest.mark.parametrize("name", OBJECTS)
def test_public_docstrings_say_what_goes_in_and_what_comes_out(name):
    value = OBJECTS[name]
    text = inspect.getdoc(value) or ""
    assert text, "no docstring"
    summary = text.split("\n\n")[0]
    assert summary.endswith((".", ":")), summary
    sections = set(re.findall(r"^(Args|Returns|Yields|Raises|Example):$", text, re.M))
    names = parameters(value)
    if names:
        assert "Args" in sections
        for parameter in names:
            assert re.search(rf"^    {parameter}: ", text, re.M), f"{parameter} is not described"
    if inspect.isfunction(value):
        returned = inspect.signature(value).return_annotation
        says = re.match(r"(Return|Yield|Tell)\b", summary) is not None
        assert returned in ("None", None) or sections & {"Returns", "Yields"} or says, f"returns {returned}"
        source = inspect.getsource(value)
        if re.search(r"^\s+raise \w+Error", source, re.M):
            assert "Raises" in sections


def examples():
    finder = doctest.DocTestFinder()
    return {test.name: test for value in OBJECTS.values() for test in finder.find(value) if test.examples}


@pytest.mark.parametrize("name", sorted(examples()))
def test_examples_run(name):
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    report = []
    runner.run(examples()[name], out=report.append)
    assert not runner.failures, "".join(report)


def test_what_people_use_most_has_an_example():
    assert len(examples()) >= MIN_EXAMPLES
    for value in (daisy.load, daisy.save, daisy.Model, daisy.EarlyExitEncoder, daisy.ExitOutput, daisy.Backbone):
        assert "Example:" in inspect.getdoc(value), value
