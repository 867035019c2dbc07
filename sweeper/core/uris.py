"""URIs of stores and data, which are kept in rows, logs and process lists: none may hold a key."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, urlsplit

from sweeper.core.errors import SweepError

_SECRET = re.compile(r"key|secret|token|passw|credential|signature|^sas", re.IGNORECASE)
"""In the name of what a URI is asked with, after `?`."""
_S3 = re.compile(r"s3[an]?", re.IGNORECASE)


def keyless(flag: str, place: str) -> str:
    """Return a folder or URI as it is, unless it holds keys.

    Args:
        flag: Where it was given, for the error.
        place: As it was given.

    Raises:
        SweepError: It holds keys; the error tells none of them.
    """
    if _holds_keys(place):
        scheme = re.sub(r"[^a-z0-9]", "", place.partition("://")[0].lower())
        raise SweepError(
            f"{flag}: this {scheme}:// URI holds keys, and a URI is kept in rows, logs and lists "
            "of processes: take them out, and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY "
            "(AWS_SESSION_TOKEN) in the environment, of every node of a cluster"
        )
    return place


def _holds_keys(place: str) -> bool:
    scheme, is_uri, rest = place.strip().partition("://")
    if not is_uri:
        return False
    parts = urlsplit(f"any://{rest}")
    user, _, host = parts.netloc.rpartition("@")
    port = host.rpartition("]")[2].partition(":")[2]  # after an address of IPv6
    if ":" in user or not (port.isdecimal() or not port):  # a key may hold a slash: s3://ID:a/b@c
        return True
    if _S3.fullmatch(scheme) and (user or port):  # a bucket has neither
        return True
    query = parse_qsl(parts.query, keep_blank_values=True)
    return any(_SECRET.search(name) or _holds_keys(value) for name, value in query)
