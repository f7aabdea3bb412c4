"""The one error for what a user gave wrongly."""


class InputError(ValueError):
    """Something the user supplied cannot be used.

    The message is one line that names the thing and the remedy. The command line prints it
    without a traceback and exits with 2; every other exception is a fault of the program.
    """
