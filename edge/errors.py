"""What can go wrong, and what its catcher does.

    EdgeError
    ├── InputError              a file or setting a person gave is wrong     stop, a person must act
    ├── OutboxError
    │   ├── OutboxFull          no room left under the quota                 evict the least important, record it
    │   └── OutboxCorrupt       a record does not match its checksum         keep a copy, skip it, record it
    ├── BlockCorrupt            a block does not decode                      set it aside, count it
    │   └── TableMissing        it names a model table that is not here      keep it until the table comes
    └── CloudError
        ├── CloudUnreachable    no connection, or no answer in time          wait and send again
        └── MessageRejected     the cloud will never take this message       set it aside, count it

The file that wraps a library turns its errors into these, `from error`.
"""


class EdgeError(Exception):
    """Any error of this project."""


class InputError(EdgeError):
    """A file or a setting is wrong: names the place, the problem and the way out, in one line."""

    def __init__(self, place: object, problem: str, way_out: str = "") -> None:
        self.place = str(place)
        self.problem = problem
        self.way_out = way_out
        text = f"{place}: {problem}" + (f"; {way_out}" if way_out else "")
        super().__init__(" ".join(text.splitlines()))  # one line, whatever was quoted


class OutboxError(EdgeError):
    """The outbox cannot do what it was asked."""


class OutboxFull(OutboxError):
    """No room is left under the quota."""


class OutboxCorrupt(OutboxError):
    """A record does not match its checksum."""


class BlockCorrupt(EdgeError):
    """A block is cut, flipped or foreign."""


class TableMissing(BlockCorrupt):
    """A block needs a model table; name has the first bytes of its SHA-256, in hex."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"the block needs the model table sha256:{name}…, which is not here")


class CloudError(EdgeError):
    """The cloud side did not do what it was asked."""


class CloudUnreachable(CloudError):
    """No connection, or no answer in time."""


class MessageRejected(CloudError):
    """The cloud will never take this message."""
