"""The base of errors that a user can mend: the command line prints their message and exits with status 2."""


class UserError(Exception):
    """The message says what was asked, what was found and what to do."""
