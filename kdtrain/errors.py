"""Errors of users: a UserError is something that the user can correct; any other exception is a defect of kdtrain."""


class UserError(Exception):
    """One or more mistakes of the user.

    The command line prints each problem on a line of its own and exits with code 2.

    Args:
        *problems: One sentence per mistake, with the place, the rule, the value and the choices, such as
            `sweep.yaml:12: recipe.epochs: must be >= 1, got 0`. At least one.

    Attributes:
        problems: The same sentences.
    """

    def __init__(self, *problems: str) -> None:
        if not problems:
            raise ValueError("a UserError needs at least one problem")
        super().__init__("\n".join(problems))
        self.problems = problems


class DamagedFile(UserError):
    """A stored file that has changed since it was written, or cannot be read: nothing may be computed from it."""

    @classmethod
    def at(cls, place: object, reason: str) -> "DamagedFile":
        """Return the error about a file of a folder of results, with what to do."""
        return cls(f"{place}: {reason}; remove it and run the sweep again to have it made again")


class NoResult(UserError):
    """The error of a study that ran and ended without a result; its files stay. The command exits with code 1."""
