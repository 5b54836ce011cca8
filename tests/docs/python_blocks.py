"""Runs a page's Python as a reader would type it, block by block, and checks the outputs that the page shows."""

import ast
import doctest
import io
import tokenize


def run(texts, page):
    """Run blocks in one namespace.

    A block with ``>>>`` is a doctest. In other blocks, the value of an expression whose comment begins with ``tensor(``
    must be what the comment says.

    Raises:
        AssertionError: if an output differs.
    """
    names = {"__name__": "__main__"}
    for number, text in enumerate(texts, 1):
        name = f"{page}, Python block {number}"
        if ">>> " in text:
            run_doctest(text, names, name)
        else:
            run_statements(text, names, name)


def run_doctest(text, names, name):
    report = []
    test = doctest.DocTestParser().get_doctest(text, names, name, None, 0)
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    failed = runner.run(test, out=report.append, clear_globs=False).failed
    names.update(test.globs)
    assert not failed, "".join(report)


def run_statements(text, names, name):
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type == tokenize.COMMENT
    }
    for statement in ast.parse(text, name).body:
        comment = comments.get(statement.end_lineno, "")
        if isinstance(statement, ast.Expr) and comment.startswith("tensor("):
            value = repr(eval(compile(ast.Expression(statement.value), name, "eval"), names))
            assert comment.startswith(value), f"{name}, line {statement.lineno}: {value}, and not {comment}"
        else:
            exec(compile(ast.Module([statement], []), name, "exec"), names)
