"""Errors as Python users see them: one line, types that can be caught, and the same across processes."""

import ast
import pickle
import re
from pathlib import Path
from typing import get_args

import pytest

from daisy import errors
from daisy.errors import AudioError, CheckpointError, DaisyError, OutputError, PolicyError, Remedy, UsageError

KINDS = [DaisyError, AudioError, CheckpointError, PolicyError, OutputError, UsageError]


@pytest.mark.parametrize("kind", KINDS)
def test_a_refusal_survives_pickling_with_its_remedy(kind):
    error = pickle.loads(pickle.dumps(kind("out: holds a run", remedy="overwrite", path="out")))
    assert type(error) is kind
    assert (error.message, error.remedy, error.path) == ("out: holds a run", "overwrite", "out")
    assert str(error) == "out: holds a run; use another folder, or pass overwrite=True"
    assert error.args == ("out: holds a run",)


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_remedy_the_message_is_all(kind):
    assert str(kind("gone.wav: no such file")) == "gone.wav: no such file"
    assert str(pickle.loads(pickle.dumps(kind("gone.wav: no such file")))) == "gone.wav: no such file"


def test_wrong_arguments_are_value_errors_and_wrong_files_are_not():
    assert [kind for kind in KINDS if issubclass(kind, ValueError)] == [AudioError, PolicyError, UsageError]
    with pytest.raises(ValueError, match="depth must be above 0"):
        raise PolicyError("depth must be above 0, found 2")


def test_every_remedy_has_one_line_in_pythons_terms():
    assert set(errors.REMEDIES) == set(get_args(Remedy))
    for line in errors.REMEDIES.values():
        assert "--" not in line
        assert len(line.splitlines()) == 1


def test_the_tree_in_the_docstring_is_the_tree():
    said = dict(line.split(maxsplit=1) for line in errors.__doc__.splitlines() if line.startswith("  "))
    assert set(said) == {kind.__name__ for kind in KINDS[1:]}
    for kind in KINDS[1:]:
        assert kind.__base__ is DaisyError
        assert said[kind.__name__].endswith("; a ValueError too") == issubclass(kind, ValueError)


def test_the_librarys_refusals_name_no_options_of_the_command_line():
    """Those are for the command line to add, by `Remedy`."""
    package = Path(errors.__file__).parent
    for path in package.rglob("*.py"):
        if "cli" in path.relative_to(package).parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise):
                texts = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)]
                named = [text for text in texts if isinstance(text, str) and re.search(r"(^|\s)--[a-z]", text)]
                assert not named, f"{path}:{node.lineno} {named}"
