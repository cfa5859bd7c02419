"""What a user can mend is a UserError; everything else is a defect of ours."""


class UserError(Exception):
    """One or more mistakes, each a sentence with place, rule, value and choices.

    The command line prints each problem on a line of its own and exits with code 2.
    """

    def __init__(self, *problems: str) -> None:
        if not problems:
            raise ValueError("a UserError needs at least one problem")
        super().__init__("\n".join(problems))
        self.problems = problems


class NoResult(UserError):
    """A study that ran and ended without a result to report; what it did stays. Exit code 1."""
