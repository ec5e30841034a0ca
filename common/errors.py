"""The error a user can mend; entry points print its message without a traceback and exit with status 2."""


class UserError(Exception):
    """Something the user asked for cannot be done.

    The message says what is wrong (with the value seen), where, and what to do.
    """
