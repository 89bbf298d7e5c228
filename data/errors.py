"""The one exception of this package that a user can cause."""


class DataError(ValueError):
    """Raw or prepared data that cannot be used; the message names the file and what is expected."""
