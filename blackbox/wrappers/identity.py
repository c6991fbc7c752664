"""Which black box this is: a text that two boxes share only if they give the same answers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from functools import partial
from types import MemberDescriptorType
from typing import Any

from blackbox.errors import ConfigurationError
from blackbox.function import BlackBoxFunction
from blackbox.wrappers.code import name_of, stores
from blackbox.wrappers.described import described, described_class
from blackbox.wrappers.wrapper import Wrapper

# What does not change a row's answer, or is in the specs already.
_ASIDE = {"_ledger", "failures", "isolates", "inputs", "outputs"}
_VERSION = 2  # of the words: other words are another identity, and rows are asked again
DIGESTS = "digests"  # how a text begins that holds no values
_SHOWN = ("class", "specs")
_INNER = "inner "  # before the parts of what a wrapper is around
UNKNOWN = "unknown"  # how words begin for what cannot be described
_LONG = 200  # characters of one part; of more there is a digest


def identity(box: BlackBoxFunction) -> str:
    """Class, code, version, specs and configuration of a box, in words that are the same in every process.

    Code is what the class and its parents define, with the functions, classes and values that they name, in
    the user's own files; modules that functions import when they run are imported for it. Packages that are
    installed, this one among them, are known by name alone. It
    goes by what is executed, not by the text: comments, docstrings and line breaks change nothing, and
    another minor version of Python is another code. Configuration is all attributes of the instance, those in
    `__slots__` too: plain data, arrays, torch modules, functions, and objects that could be pickled. A
    `Path` to a file counts with the file's content; a folder, or a path that is a text, by name alone.
    Transparent wrappers are not seen.

    A box that has an attribute `identity` (a text) is described by it in place of code and configuration, but
    for what subclasses of the class that defines it add. One with an attribute `version` is described by that
    too: change it with what is not seen, such as an installed package, or a file that the code opens by name.

    Raises:
        ConfigurationError: an attribute, or something that the code names, cannot be described, or code uses
            what it does not name (`eval(text)`).
    """
    return joined(parts(box))


def joined(words: dict[str, str]) -> str:
    """One text of a box's parts."""
    return f"identity {_VERSION}: " + ", ".join(f"{key}={words[key]}" for key in sorted(words))


def without_values(words: dict[str, str]) -> str:
    """A box's parts for a file that others may read: class and specs in words, a digest of each other part.

    An attribute may be a password or the key of a service. From a digest it cannot be read; one short enough
    to be tried out can be guessed.
    """

    def shown(key: str) -> str:
        if key.replace(_INNER, "") in _SHOWN:
            return words[key]
        return hashlib.blake2b(words[key].encode(), digest_size=16).hexdigest()

    return f"{DIGESTS} {_VERSION}: " + ", ".join(f"{key}={shown(key)}" for key in sorted(words))


def parts(box: BlackBoxFunction, *, refused: Collection[str] | None = None) -> dict[str, str]:
    """What `identity` consists of, by name.

    Args:
        box: the box.
        refused: which parts are refused where they cannot be described, None for all; others are then known
            by the object that they are.

    Raises:
        ConfigurationError: a part that cannot be described is refused.
    """
    while isinstance(box, Wrapper) and box.transparent:
        box = box.box
    cls, name = type(box), type(box).__name__
    package = cls.__module__.partition(".")[0]
    words = {"class": name_of(cls), "specs": f"{box.inputs!r} -> {box.outputs!r}, arrays={box.arrays!r}"}
    attributes = _attributes(box)
    text, definer = _text_of_its_own(box)
    if text is not None:
        words["identity"] = repr(text)
        aside = set(attributes)
        if definer is not None and definer is not cls:  # a subclass may hold more than that class knew of
            aside = stores(definer) | {"identity"}
        attributes = {key: value for key, value in attributes.items() if key not in aside}
    attributes["version"] = getattr(box, "version", None)
    if isinstance(box, Wrapper):
        if attributes.get("box") is box.box:
            del attributes["box"]
        inner = None if refused is None else [key.removeprefix(_INNER) for key in refused]
        words |= {f"{_INNER}{key}": value for key, value in parts(box.box, refused=inner).items()}

    def part(key: str, value: object, words_of: Callable[[], str]) -> str:
        try:
            return _short(words_of())
        except ConfigurationError:
            if refused is None or key in refused:
                raise
            return f"{UNKNOWN} {id(value)}"

    for key, value in attributes.items():
        words[f".{key}"] = part(f".{key}", value, partial(described, f"{name}.{key}", value, package))
    if text is None or definer is not None:
        words["code"] = part("code", cls, partial(described_class, name, cls, package, definer))
    return words


def _short(words: str) -> str:
    if len(words) <= _LONG:
        return words
    return f"{words[:40]}... {hashlib.blake2b(words.encode(), digest_size=20).hexdigest()}"


def _attributes(box: BlackBoxFunction) -> dict[str, Any]:
    """What the instance holds, in its dictionary and in the slots of its class and the class's parents."""
    attributes: dict[str, Any] = {}
    for cls in reversed(type(box).__mro__):
        for key, slot in vars(cls).items():
            if isinstance(slot, MemberDescriptorType):
                try:
                    attributes[f"{key} of {cls.__name__}" if key in attributes else key] = slot.__get__(box)
                except AttributeError:  # nothing is in it yet
                    pass
    attributes |= vars(box)
    return {key: value for key, value in attributes.items() if key not in _ASIDE}


def _text_of_its_own(box: BlackBoxFunction) -> tuple[str | None, type | None]:
    """The box's text for itself, and the class that defines it; no class if the instance has it."""
    text = getattr(box, "identity", None)
    if text is None:
        return None, None
    if not isinstance(text, str) or not text:
        raise ConfigurationError(
            f"{box!r}, identity: expected a text, got {text!r}. "
            "Write one that changes whenever the box's answers do."
        )
    definer = next((cls for cls in type(box).__mro__ if "identity" in vars(cls)), None)
    if definer is None or ("identity" in vars(box) and not hasattr(vars(definer)["identity"], "__set__")):
        return text, None
    return text, definer
