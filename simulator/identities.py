"""Who may connect: names, keys, certificates, and the judgement of a CONNECT.

An identity is a module's name, "" for the simulated device itself, and `device/module` or `device/` for any other
device that the registry knows.
"""

from collections.abc import Callable, Collection
from urllib.parse import parse_qs

from simulator import mqtt
from simulator.sas import LATEST, BadToken, check_token


class Identities:
    """keys: of those that are let in. hosts: names that a token may be for. now: the clock that tokens expire by."""

    def __init__(self, device: str, hosts: Collection[str], keys: dict[str, bytes], now: Callable[[], float]) -> None:
        self.keys = keys
        self._device = device
        self._hosts = hosts
        self._now = now
        self._secondary_keys: dict[str, bytes] = {}
        self._thumbprints: dict[str, Collection[str]] = {}

    def add(self, identity: str, key: bytes, secondary: bytes, thumbprints: Collection[str]) -> None:
        self.keys[identity] = key
        self._secondary_keys[identity] = secondary or key
        self._thumbprints[identity] = thumbprints

    def bar(self, identity: str) -> None:
        """Let it in no longer."""
        self.keys.pop(identity, None)

    def of(self, device: str, module: str) -> str:
        return module if device == self._device else f"{device}/{module}"

    def names_of(self, identity: str) -> tuple[str, str]:
        """Device and module; a module of "" is the device itself."""
        device, slash, module = identity.partition("/")
        return (device, module) if slash else (self._device, identity)

    def path_of(self, identity: str) -> str:
        """As in topics and in the audience of tokens."""
        device, module = self.names_of(identity)
        return f"devices/{device}/modules/{module}" if module else f"devices/{device}"

    def is_direct(self, identity: str) -> bool:
        """Of another device than the simulated one: it speaks with IoT Hub, not with edgeHub.

        IoT Hub sends with QoS 0, and says the version behind a reported patch; no routes are between.
        """
        return "/" in identity

    def judge(self, connect: mqtt.Connect, identity: str, thumbprints: Collection[str]) -> tuple[int, str, int]:
        """CONNACK code, its reason, and when the token expires. thumbprints: of the client's certificate."""
        if connect.level != 4:
            return mqtt.BAD_PROTOCOL, f"protocol level {connect.level}", 0
        name, _, query = connect.username.partition("?")
        parts = name.strip("/").split("/")
        if len(parts) not in (2, 3) or "api-version" not in parse_qs(query):
            return mqtt.NOT_AUTHORISED, "the user name is not hub/device/module/?api-version=…", 0
        if "/".join(parts[1:]) != connect.client_id:
            return mqtt.NOT_AUTHORISED, "client id and user name do not name one module or device", 0
        if identity not in self.keys:
            return mqtt.NOT_AUTHORISED, "there is no such module or device", 0
        if thumbprints and not connect.password:
            if set(thumbprints) & set(self._thumbprints.get(identity, ())):
                return mqtt.ACCEPTED, "", LATEST
            return mqtt.NOT_AUTHORISED, "the certificate has no thumbprint that is registered for it", 0
        try:
            return mqtt.ACCEPTED, "", self.check_token(connect.password, identity)
        except BadToken as error:
            return mqtt.NOT_AUTHORISED, str(error), 0

    def check_token(self, token: str, identity: str) -> int:
        """When the token of an identity expires. Raises BadToken."""
        path, key = self.path_of(identity), self.keys[identity]
        try:
            return check_token(token, self._hosts, path, key, self._now())
        except BadToken:
            second = self._secondary_keys.get(identity, key)
            if second == key:
                raise
            return check_token(token, self._hosts, path, second, self._now())
