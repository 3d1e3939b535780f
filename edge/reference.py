"""What names a document of campaigns: where it is, its size, and its hash."""

from typing import Annotated

import msgspec

MOST_BYTES = 1 << 20


class Reference(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """url (https) or file (its name in the folder of documents); bytes and sha256 (hex digits) of the content."""

    bytes: Annotated[int, msgspec.Meta(ge=2, le=MOST_BYTES)]
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    url: Annotated[str, msgspec.Meta(max_length=2048)] | None = None
    file: Annotated[str, msgspec.Meta(max_length=255)] | None = None

    def __post_init__(self) -> None:
        if (self.url is None) == (self.file is None):
            raise ValueError("give url or file, one of them")

    def __str__(self) -> str:
        """Without what may be a secret: a URL's query, and a password in front of its host."""
        place = self.file or str(self.url).partition("?")[0].rpartition("@")[2].removeprefix("https://")
        return "document " + "".join(sign if sign.isprintable() else "?" for sign in place)
