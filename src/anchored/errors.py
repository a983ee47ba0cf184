"""The errors a user can cause and fix.

Every message names the file, the field, the value and the way out.
"""


class AnchoredError(Exception):
    """Base of every error the user can fix; the command line prints one line and exits with 2."""


class Incomplete(AnchoredError):
    """A run finished with parts missing; the rest was written. The exit status is 1."""


class ConditionMet(AnchoredError):
    """A condition of `--fail-if` holds; everything was written. The exit status is 1."""


class ConfigError(AnchoredError):
    """A configuration file, an override or a command-line option is wrong."""


class DataError(AnchoredError):
    """Input rows, a prepared dataset or an output folder do not fit the command."""


class TokenizerMismatch(AnchoredError):
    """A tokenizer encodes the probe differently from the one a dataset or model was made with."""


class EndpointError(AnchoredError):
    """A remote model did not answer as its protocol requires."""


class RequestFailed(EndpointError):
    """One request to a remote model failed; other requests may still succeed."""
