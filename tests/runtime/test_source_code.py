"""The digest of code: what an edit may change without making another recipe, and what it may not."""

import hashlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

from kdtrain.errors import UserError
from kdtrain.runtime.source_code import code_digest, code_text, source_of

LOSS = '''"""A loss."""

import torch


def loss(student, teacher, *, temperature: float = 4.0):
    """Return it."""
    # softened
    scale = temperature**2 * 1
    return scale * (student - teacher).square().mean()


TEXT = f"{loss!r:>{2}}"
SMALL = {"a": None, **{}, 'b': b"bytes"}
"""What is small."""
'''
GOLDEN = "30990b42c1e9909fc4272cfc31856ea6"


def test_a_golden_digest_so_that_no_version_of_python_changes_every_trial_id() -> None:
    assert hashlib.blake2b(code_text(LOSS).encode(), digest_size=16).hexdigest() == GOLDEN


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"""A loss."""', '"""Another text."""'),
        ('"""A loss."""\n', ""),
        ("    # softened\n", ""),
        ('    """Return it."""\n', ""),
        ('"""What is small."""\n', ""),
        ("temperature**2 * 1", "(temperature ** 2) * \\\n        1"),
        ("""'b': b"bytes\"""", """u"b": b'bytes',"""),
        ("4.0", "4.00"),
    ],
)
def test_comments_docstrings_and_formatting_are_no_other_code(before: str, after: str) -> None:
    assert before in LOSS
    assert code_text(LOSS.replace(before, after)) == code_text(LOSS)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("temperature**2 * 1", "temperature**2 * 100"),
        ("* 1", "* 1.0"),
        ("* 1", "* True"),
        ("None", "0"),
        ('b"bytes"', '"bytes"'),
        ("student - teacher", "teacher - student"),
        ("temperature: float = 4.0", "temperature: float"),
        ("*, temperature", "temperature"),
        ("import torch", "from . import torch"),
        ("**{}", "'c': {}"),
        ("def loss", "async def loss"),
    ],
)
def test_any_other_edit_is_other_code(before: str, after: str) -> None:
    assert before in LOSS
    assert code_text(LOSS.replace(before, after)) != code_text(LOSS)


def test_text_that_a_python_version_may_print_differently_is_escaped() -> None:
    assert code_text("x = 'é\U0001fae8'").isascii()


def test_a_file_that_is_edited_after_its_import_keeps_the_digest_of_what_this_process_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    head = "from kdtrain.methods.none import NoDistillation\n\nclass Own(NoDistillation):\n"
    file = tmp_path / "edited_while_it_runs.py"
    file.write_text(head + "    factor: float = 1.0\n")
    monkeypatch.delitem(sys.modules, file.stem, raising=False)
    __import__(file.stem)  # a method of this module is defined, which reads its source
    file.write_text(head + "    factor: float = 100.0\n")
    expected = hashlib.blake2b(code_text(head + "    factor: float = 1.0\n").encode(), digest_size=16)
    assert code_digest(file.stem) == expected.hexdigest()


def test_code_without_a_source_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "a_notebook_cell", ModuleType("a_notebook_cell"))
    assert source_of("a_notebook_cell") is None
    with pytest.raises(UserError, match=r"^recipe\.method: the code of a_notebook_cell has no source file"):
        code_digest("a_notebook_cell")
