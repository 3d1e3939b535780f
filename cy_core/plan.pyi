from edge.manifest import DecoderManifest

class Plan:
    manifest: DecoderManifest
    message_count: int
    signal_count: int
    longest: int
    has_segments: bool
    def __init__(self, manifest: DecoderManifest) -> None: ...
    def find_message(self, bus: int, can_id: int) -> int | None: ...
