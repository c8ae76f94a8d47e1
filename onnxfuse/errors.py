"""The one exception that means "you", not "us"."""


class UsageError(Exception):
    """Unreadable input or impossible options. The message is one line: what was found, where, what to do."""
