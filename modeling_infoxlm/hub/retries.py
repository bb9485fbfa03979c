"""Calls to the Hub that outlast trouble on the way, and one clear line at the end.

huggingface_hub tries uploads and downloads of large files again by itself, but gives up at a checksum that is
wrong, and tries everything else once: making repositories, commits and tags, and asking what is there.
"""

import logging
import random
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import TypeVar

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)

from modeling_infoxlm.runs.secrets import blot_secrets

logger = logging.getLogger(__name__)

ATTEMPTS = 5
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0  # seconds; doubled each time
# What the client's own client of HTTP raises, whichever that is (httpx, httpx2).
TRANSPORT_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]
# With what Xet raises, the Hub's other way of uploading.
_TROUBLE = (TRANSPORT_ERROR, ConnectionError, TimeoutError)
# What another try cannot change, and what to do about it.
_HINTS = {
    401: "run `hf auth login`, or give a valid --token",
    403: "the token may not write there: check its role and the name of the repository",
    413: "a file is too large; give a smaller --max_shard_size",
}
_GO_ON = "nothing local was changed: run the same command again to go on"

Result = TypeVar("Result")


class HubError(OSError):
    """The Hub refused, or could not be reached; one line that says what was tried and what to do."""


class RetriedApi:
    """The Hub's client, each call tried several times; `wait` gets the seconds between two tries."""

    def __init__(
        self, hub: HfApi, *, attempts: int = ATTEMPTS, wait: Callable[[float], None] = time.sleep
    ) -> None:
        self.hub, self.attempts, self.wait = hub, attempts, wait

    def call(self, what: str, action: Callable[[HfApi], Result], *, attempts: int | None = None) -> Result:
        """Call the Hub; calls must be such that doing them twice does no harm.

        Args:
            what: What is done, for messages: "commit".
            action: The call.
            attempts: Tries of this one, if not as many as of others.

        Raises:
            HubError: If it failed for good, or in each try.
            HfHubHTTPError: If it failed with 404: callers know what a missing thing means.
        """
        attempts, attempt = attempts or self.attempts, 1
        while True:
            try:
                return action(self.hub)
            except LocalTokenNotFoundError as error:
                raise HubError(f"not logged in to {self.hub.endpoint}: run `hf auth login`.") from error
            except (LocalEntryNotFoundError, RuntimeError, *_TROUBLE) as error:
                trouble = _network_trouble(error)
                if trouble is None or _status(trouble) == 404:
                    raise
                if attempt == attempts or _status(trouble) in _HINTS:
                    tries = "" if attempt == 1 else f" after {attempt} attempts"
                    failed = f"could not {what} at {self.hub.endpoint}{tries}: {_describe(trouble)}"
                    raise HubError(f"{failed}; {_HINTS.get(_status(trouble) or 0, _GO_ON)}.") from error
                seconds = _waiting_time(trouble, attempt)
                logger.warning("could not %s: %s. Trying again in %.0f s.", what, _describe(trouble), seconds)
                self.wait(seconds)
                attempt += 1


def _network_trouble(error: BaseException | None) -> BaseException | None:
    """The error of the network in a chain of causes; the client wraps those of uploads in RuntimeErrors."""
    while error is not None and not isinstance(error, (*_TROUBLE, OfflineModeIsEnabled)):
        error = error.__cause__ or error.__context__
    return None if isinstance(error, OfflineModeIsEnabled) else error


def _status(error: BaseException) -> int | None:
    response = getattr(error, "response", None)
    return None if response is None else int(response.status_code)


def _waiting_time(error: BaseException, attempt: int) -> float:
    """Seconds: what the server asks for, else doubled each time, less up to a half by chance."""
    response = getattr(error, "response", None)
    asked = "" if response is None else response.headers.get("Retry-After", "")
    if asked.isdigit():
        return min(float(asked), LONGEST_WAIT)
    return min(FIRST_WAIT * 2 ** (attempt - 1), LONGEST_WAIT) * random.uniform(0.5, 1.0)


def _describe(error: BaseException) -> str:
    """One line, without secrets."""
    status = _status(error)
    if status is None:
        return blot_secrets(" ".join(str(error).split()) or type(error).__name__)
    phrase = HTTPStatus(status).phrase if status in set(HTTPStatus) else ""
    said = getattr(error, "server_message", None)
    return blot_secrets(" ".join(f"{status} {phrase}{f' ({said})' if said else ''}".split()))
