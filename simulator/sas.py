"""SAS tokens: `SharedAccessSignature sr=<audience>&sig=<base64 HMAC-SHA256>&se=<seconds since 1970>`."""

import base64
import hashlib
import hmac
from collections.abc import Collection
from urllib.parse import unquote, unquote_plus

CLOCK_SKEW_SECONDS = 300
LATEST = 1 << 40  # seconds since 1970: year 36812


class BadToken(Exception):
    """It does not let its bearer in."""


def check_token(token: str, hosts: Collection[str], path: str, key: bytes, now: float) -> int:
    """When a token expires, in seconds since 1970. Raises BadToken.

    hosts: names of the hub and of the edge; path: `devices/<device>/modules/<module>`. The signature covers `sr` as it
    stands in the token: encoders differ. now: seconds since 1970.
    """
    kind, _, rest = token.partition(" ")
    fields = dict(part.partition("=")[::2] for part in rest.split("&"))
    if kind != "SharedAccessSignature" or not {"sr", "sig", "se"} <= fields.keys():
        raise BadToken("the password is no SAS token")
    host, _, audience = unquote_plus(fields["sr"]).partition("/")
    if host.lower() not in {known.lower() for known in hosts} or audience != path:
        raise BadToken(f"the token is for {host}/{audience}, not {'|'.join(hosts)}/{path}")
    digest = hmac.digest(key, f"{fields['sr']}\n{fields['se']}".encode(), hashlib.sha256)
    if not hmac.compare_digest(unquote(fields["sig"]).encode(), base64.b64encode(digest)):
        raise BadToken("the token's signature is wrong")
    if not fields["se"].isdecimal() or len(fields["se"]) > 12 or not int(fields["se"]) < LATEST:
        raise BadToken("the token's time of expiry is no time")
    if has_expired(int(fields["se"]), now):
        raise BadToken("the token has expired")
    return int(fields["se"])


def has_expired(expiry: int, now: float) -> bool:
    return expiry < now - CLOCK_SKEW_SECONDS
