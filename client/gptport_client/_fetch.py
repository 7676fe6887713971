"""One plain HTTP GET."""

from __future__ import annotations

from gptport_client._errors import (
    ConnectionError,  # noqa: A004 - ours
    ServerError,
)


def fetch(url: str, timeout: float | None) -> bytes:
    """The content at `url`."""
    import urllib3  # only few need it

    try:
        answer = urllib3.request("GET", url, timeout=timeout, retries=False)
    except urllib3.exceptions.HTTPError as error:
        raise ConnectionError(
            f"no connection to {url}: {error}; is this the server's metrics address?"
        ) from error
    if answer.status != 200:
        raise ServerError(f"{url} answered with the HTTP status {answer.status}; give another metrics_url")
    return answer.data
