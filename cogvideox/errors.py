"""The error that is meant for people: a mistake in what they gave us, never one of ours."""


class UserError(ValueError):
    """Something that the user gave is wrong, and the message says what, where and how to mend it.

    The entry points print `str(error)` and exit with status 2; no traceback is shown.
    """
