"""Cache salts of edited prompts: equal edits share prefix-cache blocks, unequal ones never do."""

import hashlib

SALT_PREFIX = "heed1:"
"""Every salt that Heed makes begins with this; users' own may not."""


def salted(user_salt: str | None, digest: str) -> str:
    """Salt of a prompt whose publishable rows are edited.

    user_salt: the request's own `cache_salt`, which stays a part of it. digest: SHA-256 (hex) of
    the resolved edits. Parts are length-prefixed, so that no two pairs give the same bytes.
    """
    hashed = hashlib.sha256()
    for part in (user_salt or "", digest):
        data = part.encode()
        hashed.update(len(data).to_bytes(8, "big"))
        hashed.update(data)
    return SALT_PREFIX + hashed.hexdigest()
