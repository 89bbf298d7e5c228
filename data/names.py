"""Names fit for files: unique, and still to be read by who wrote them, in any script."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import count

LONGEST = 180  # bytes; file systems take 255, and endings such as _rater3_sdf.npy come behind
_WINDOWS = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # names of devices there


def _hashed(safe: str, name: str) -> str:
    return f"{safe}-{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()[:8]}"


def safe_name(name: str) -> str:
    """Letters and digits of any script, '.', '_' and '-', no leading dot; what else stands between becomes one '_'.

    Names of more than 180 bytes are cut and end in a hash of the whole.
    """
    composed = unicodedata.normalize("NFC", name)
    kept = "".join(c if c in "._-" or unicodedata.category(c)[0] in "LMN" else " " for c in composed)
    safe = re.sub(" +", "_", kept).lstrip(".") or "_"
    if _WINDOWS.fullmatch(safe):
        safe = f"_{safe}"
    if len(safe.encode()) > LONGEST:
        safe = _hashed(safe.encode()[:LONGEST].decode(errors="ignore"), name)
    return safe


def _folded(name: str) -> str:
    """Alike for names that a file system without case, or one that composes letters, takes for one."""
    return unicodedata.normalize("NFC", name.casefold())


def unique_names(names: Sequence[str], taken: Iterable[str] = ()) -> list[str]:
    """`safe_name` of each, made unique on any file system and different from those `taken`.

    Where several come to the same, one that needed no change keeps it and the others get a hash of the whole name:
    what a name becomes does not depend on the order.
    """
    result = [safe_name(name) for name in names]
    folded = [_folded(safe) for safe in result]
    wanted = Counter(folded)
    unchanged = Counter(f for f, safe, name in zip(folded, result, names, strict=True) if safe == name)
    used = {_folded(name) for name in taken}
    keep = [
        f not in used and (wanted[f] == 1 or (safe == name and unchanged[f] == 1))
        for f, safe, name in zip(folded, result, names, strict=True)
    ]
    used.update(f for f, kept in zip(folded, keep, strict=True) if kept)
    for i, name in enumerate(names):
        if not keep[i]:
            others = (_hashed(result[i], name + "\0" * n) for n in count())
            result[i] = next(other for other in others if _folded(other) not in used)
            used.add(_folded(result[i]))
    return result
