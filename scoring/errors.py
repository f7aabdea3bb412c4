"""The one error for what a user gave wrongly, what a file system that refuses says, and counts in messages."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

# Faults of the place that a user has chosen, not of the program; another try meets them again.
PLACE_ERRNOS = frozenset(
    [
        *(errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS),
        *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOENT, errno.ENAMETOOLONG, errno.ELOOP, errno.EFBIG),
    ]
)


class InputError(ValueError):
    """Something the user supplied cannot be used.

    The message is one line that names the thing and the remedy. The command line prints it
    without a traceback and exits with 2; every other exception is a fault of the program.
    """


@contextmanager
def naming(path: os.PathLike[str], alias: os.PathLike[str] | None = None) -> Iterator[None]:
    """Give the path to what a file system says without one, as of writing to an open file.

    alias: what `path` is called while it is written, which means nothing to a user
    """
    try:
        yield
    except shutil.Error as error:  # of a folder that was copied, of each file
        raise OSError(None, error.args[0][0][2], os.fspath(path)) from error
    except OSError as error:
        if error.filename is None and type(error) is OSError:  # no connection's, and no other package's
            raise OSError(error.errno, error.strerror or str(error), os.fspath(path)) from error
        if error.filename is not None and alias is not None:
            error.filename = os.fsdecode(error.filename).replace(os.fspath(alias), os.fspath(path))
        raise


def counted(number: int, noun: str) -> str:
    """`1 branch`, `3 branches`."""
    plural = noun + ("es" if noun.endswith(("s", "x", "ch", "sh")) else "s")
    return f"{number} {noun if number == 1 else plural}"


def place_error(error: OSError) -> str:
    """What a file system that refuses says, in one line with the remedy."""
    where = f"{error.filename}: " if error.filename is not None else ""
    room = "make room, or give" if error.errno in (errno.ENOSPC, errno.EDQUOT, None) else "give"  # NumPy has no errno
    return f"{where}{error.strerror or error}; {room} another path"
