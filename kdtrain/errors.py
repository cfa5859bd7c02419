"""Errors of users: a UserError is something that the user can correct; any other exception is a defect of kdtrain."""

import re

PASSWORD = re.compile(r"(://)[^/?#\s@]*:[^?#\s@]*@")
"""User info of a URL with a password in it, which may have slashes."""
MOST_CHARACTERS = 80
"""Characters of a value that a message shows."""


def printable(text: str) -> str:
    """Return a text in one line, with escapes in place of control characters and of bytes that are not UTF-8."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def shortened(text: str, most: int = MOST_CHARACTERS) -> str:
    """Return the printable beginning of a text, for a message: at most `most` characters of it."""
    whole = printable(text[: most + 1])
    return whole if len(whole) <= most else whole[: most - 3] + "..."


def without_password(text: str) -> str:
    """Return a text with *** in place of the user info of each URL that has a password."""
    return PASSWORD.sub(r"\1***@", text)


class UserError(Exception):
    """One or more mistakes of the user.

    The command line prints each problem on a line of its own and exits with code 2.

    Args:
        *problems: One sentence per mistake, with the place, the rule, the value and the choices, such as
            `sweep.yaml:12: recipe.epochs: must be >= 1, got 0`. At least one.

    Attributes:
        problems: The same sentences, each in one line: control characters are escaped, and passwords in URLs hidden.
    """

    def __init__(self, *problems: str) -> None:
        if not problems:
            raise ValueError("a UserError needs at least one problem")
        self.problems = tuple(printable(without_password(problem)) for problem in problems)
        super().__init__("\n".join(self.problems))


class DamagedFile(UserError):
    """A stored file that has changed since it was written, or cannot be read: nothing may be computed from it."""

    @classmethod
    def at(cls, place: object, reason: str) -> "DamagedFile":
        """Return the error about a file of a folder of results, with what to do."""
        return cls(f"{place}: {reason}; remove it and run the sweep again to have it made again")


class NoResult(UserError):
    """The error of a study that ran and ended without a result; its files stay. The command exits with code 1."""
