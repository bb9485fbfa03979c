"""The one kind of error that the user mends: input that cannot be used."""


class DataError(ValueError):
    """Input that the user has to mend; its message is one clear line that says what and where."""
