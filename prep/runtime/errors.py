"""The exception tree: every error a user can meet, with its exit code.

CrystalmixError          1
├── UsageError           2  the command line or a settings file is wrong
│   └── RecipeError      2  a value in a recipe or run file breaks a rule
├── InputError           1  raw data can't be read as the source says
│   └── BrokenFile       1  a raw file is broken; `on_error: skip` leaves it out
│       └── NoColumn     2  it lacks the column of the text (a RecipeError too)
├── StaleError           1  an output folder was made by other settings
├── DamageError          1  a file is not what its receipt says
├── RefusalError         1  the data can't give what is required
├── MachineError         1  a disk, memory, handles or the network failed
├── DivergenceError      1  a training step gave no numbers
├── ClusterError         1  a cluster did something else than the plan says
└── WorkerError          1  a worker process died

A message is one line: file (and record), what was found, what was expected, what to do.
"""


class CrystalmixError(Exception):
    """An error that a user can mend; printed as one line."""

    exit_code = 1


class UsageError(CrystalmixError):
    """The command line asks for something that does not exist."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe or run file breaks a rule; the message starts with file, line and path."""


class InputError(CrystalmixError):
    """Raw data that can't be read as its source describes it."""


class BrokenFile(InputError):  # noqa: N818  it names what is broken
    """A raw file that can't be read to its end, or in which nothing is a record.

    reason: one word to count it under, where the source says `on_error: skip`.
    """

    def __init__(self, message: str, reason: str = "unreadable") -> None:
        super().__init__(message)
        self.reason = reason


class NoColumn(RecipeError, BrokenFile):  # noqa: N818
    """A raw file without the column that the recipe names as its text."""

    def __init__(self, message: str, reason: str = "no_column") -> None:
        super().__init__(message)
        self.reason = reason


class StaleError(CrystalmixError):
    """An output folder was made from other settings or inputs."""


class DamageError(CrystalmixError):
    """A file on disk differs from what its receipt, manifest or ledger says."""


class RefusalError(CrystalmixError):
    """A mixture, order or run that the data at hand can't give."""


class MachineError(CrystalmixError):
    """A disk, memory, file handles or the network failed; what is done is kept."""


class DivergenceError(CrystalmixError):
    """A loss or gradient of a training step that is no finite number."""


class ClusterError(CrystalmixError):
    """A cluster of CS systems that failed, or did something else than the plan says."""


class WorkerError(CrystalmixError):
    """A worker process died before it could answer."""
