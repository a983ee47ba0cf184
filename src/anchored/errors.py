"""What can go wrong, by whose doing.

Every message names the file, the field, the value and the way out.
"""


class AnchoredError(Exception):
    """Base of every error the user can mend; the command line prints one line and exits with 2."""


class Incomplete(AnchoredError):
    """A run came to its end with parts missing; what is there was written. Exit status 1."""


class ConfigError(AnchoredError):
    """A configuration file, an override or a command-line option is wrong."""


class DataError(AnchoredError):
    """Input rows, a prepared dataset or an output folder are not what the command needs."""


class TokenizerMismatch(AnchoredError):
    """A tokenizer encodes the probe otherwise than the one a dataset or model was made with."""


class EndpointError(AnchoredError):
    """A remote model did not answer as its protocol promises."""


class RequestFailed(EndpointError):
    """One request to a remote model failed; others to it may not."""
