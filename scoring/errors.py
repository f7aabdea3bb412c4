"""The one error for what a user gave wrongly, and what a file system that refuses says."""

import errno

# Faults of the place that a user has chosen, not of the program; another try meets them again.
PLACE_ERRNOS = frozenset(
    [
        *(errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS),
        *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOENT, errno.ENAMETOOLONG),
    ]
)


class InputError(ValueError):
    """Something the user supplied cannot be used.

    The message is one line that names the thing and the remedy. The command line prints it
    without a traceback and exits with 2; every other exception is a fault of the program.
    """


def place_error(error: OSError) -> str:
    """What a file system that refuses says, in one line with the remedy; NumPy and Arrow name no file."""
    where = f"{error.filename}: " if error.filename is not None else ""
    return f"{where}{error.strerror or error}; make room, or give another path"
