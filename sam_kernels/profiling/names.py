"""Lists of names on the command line."""

from collections.abc import Sequence

from . import Refused


def names(flag: str, given: str, known: Sequence[str]) -> list[str]:
    """The members of a comma-separated list; ``a`` stands for all of ``a:...`` unless it is one itself."""
    found: list[str] = []
    for name in filter(None, (part.strip() for part in given.split(","))):
        some = [name] if name in known else [k for k in known if k.startswith(f"{name}:")]
        if not some:
            raise Refused(f"{flag} is {name!r}; expected some of {', '.join(known)}")
        found += [k for k in some if k not in found]
    if not found:
        raise Refused(f"{flag} is {given!r}, which names nothing; expected some of {', '.join(known)}")
    return found
