"""The studio's password: kept as a salted scrypt hash, compared in constant time.

    access/password.json  {"hash": "scrypt$16384$8$1$SALT$KEY"}, mode 0600
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets

from core.access.secret_file import access_folder, read_secret, write_secret
from core.errors import StudioError
from core.workspace import Workspace

SHORTEST = 8
LONGEST = 256  # scrypt reads all of it: no megabytes
# 16 MiB and about 50 ms a guess: the parameters that RFC 7914 gives for interactive logins.
_COST, _BLOCK, _PARALLEL = 2**14, 8, 1


def hash_password(password: str) -> str:
    """`password` as it may be stored: salted, slow to guess, never reversible."""
    salt = secrets.token_bytes(16)
    key = _key(password, salt, _COST, _BLOCK, _PARALLEL)
    parts = (_COST, _BLOCK, _PARALLEL, base64.b64encode(salt).decode(), base64.b64encode(key).decode())
    return "$".join(("scrypt", *map(str, parts)))


def matches(password: str, stored: str) -> bool:
    """Whether `password` is the one behind `stored`; False for a damaged hash."""
    try:
        name, cost, block, parallel, salt, key = stored.split("$")
        if name != "scrypt" or len(password) > LONGEST:
            return False
        given = _key(password, base64.b64decode(salt), int(cost), int(block), int(parallel))
        return hmac.compare_digest(given, base64.b64decode(key))
    except (ValueError, MemoryError):
        return False


def _key(password: str, salt: bytes, cost: int, block: int, parallel: int) -> bytes:
    return hashlib.scrypt(password.encode("utf-8", "surrogatepass"), salt=salt, n=cost, r=block, p=parallel, dklen=32)


def set_password(workspace: Workspace, password: str) -> None:
    """Keep the hash of a new password.

    Raises:
        StudioError: it is too short or too long.
    """
    if not SHORTEST <= len(password) <= LONGEST:
        raise StudioError("The password has {count} characters.", "Take {least} to {most}; a few words in a row are easy to remember.",
                          count=len(password), least=SHORTEST, most=LONGEST)
    write_secret(access_folder(workspace) / "password.json", {"hash": hash_password(password)})


def stored_password(workspace: Workspace) -> str | None:
    """The hash that is kept; None when no password was set yet."""
    found = read_secret(access_folder(workspace) / "password.json")
    return str(found["hash"]) if isinstance(found, dict) and "hash" in found else None
