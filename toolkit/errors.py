"""How we fail: one exception tree, messages that say what, where, and what to do."""


class FablesmithError(Exception):
    """Root of every error this project raises on purpose."""


class UserError(FablesmithError):
    """Something the user can mend. The command line prints one red line, one hint, and exits with `code`.

    Args:
        message: what is wrong and where (file, line, key, value).
        hint: what to do about it, one sentence.
    """

    code = 2

    def __init__(self, message: str, hint: str = ""):
        super().__init__(message)
        self.hint = hint


class EngineDown(UserError):
    """An engine is gone (a server that cannot be reached or keeps failing): the next request would fail as well.

    Callers with other work or another engine may go on; a UserError that is not this one is about one request.
    """


class Stopped(FablesmithError):
    """Work was stopped on request; what it made before stands."""


class ProofError(FablesmithError):
    """A check of our own work failed (export proof, step-0 margin): the result must not be trusted."""
