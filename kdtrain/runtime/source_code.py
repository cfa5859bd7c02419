"""The digest of a module's code. It is part of a trial's identity, so that an edited method is another recipe."""

import ast
import hashlib
import sys
import tokenize
from functools import cache
from typing import Any

from kdtrain.errors import UserError


@cache
def source_of(module: str) -> str | None:
    """Return the source of an imported module, or None if it has no source file.

    The file is read once. Call this first while the module is imported: later the file may hold other code than this
    process runs.
    """
    file = getattr(sys.modules[module], "__file__", None)
    if file is None or not file.endswith(".py"):
        return None
    try:
        with tokenize.open(file) as source:
            return source.read()
    except OSError:
        return None


@cache
def code_digest(module: str, place: str = "recipe.method") -> str:
    """Return 32 hexadecimal digits that identify the code of an imported module, named at `place`; see `code_text`.

    Raises:
        UserError: The module has no source file.
    """
    source = source_of(module)
    if source is None:
        raise UserError(
            f"{place}: the code of {module} has no source file (.py), so an edited one could not be told from the one"
            " before; write it into a file and import it"
        )
    return hashlib.blake2b(code_text(source).encode(), digest_size=16).hexdigest()


def code_text(source: str) -> str:
    """Return the syntax tree of Python source as text: equal for sources that differ only in how they are written.

    Comments, formatting and statements that are only a string (docstrings) are left out. Empty fields are left out too,
    because new versions of Python add some (`type_params`) and `ast.dump` shows them. So is the `kind` of a string,
    which tells u"" from "".
    """
    return _written(ast.parse(source))


def _written(part: Any) -> str:
    if isinstance(part, ast.Constant):
        # ascii, because what repr escapes depends on the version's Unicode tables; the type tells 1 from True and 1.0
        return f"{type(part.value).__name__} {part.value!a}"
    if isinstance(part, ast.JoinedStr):  # Python 3.12.1 adds empty strings to the parts of an f-string
        parts = [_written(each) for each in part.values if not (isinstance(each, ast.Constant) and each.value == "")]
        return f"JoinedStr([{', '.join(parts)}])"
    if isinstance(part, ast.AST):
        fields = ((name, value) for name, value in ast.iter_fields(part) if value is not None and value != [])
        return f"{type(part).__name__}({', '.join(f'{name}={_written(value)}' for name, value in sorted(fields))})"
    if isinstance(part, list):
        return f"[{', '.join(_written(each) for each in part if not _is_docstring(each))}]"
    return ascii(part)  # a name, a number such as the level of an import, or None for the ** of a dictionary


def _is_docstring(part: Any) -> bool:
    return isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant) and isinstance(part.value.value, str)
