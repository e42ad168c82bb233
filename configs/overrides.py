"""The command line's key=value: Hydra's grammar for values, and texts as they are typed.

A text that Hydra's grammar refuses or would change ({, #, =, brackets, 007, an umlaut) is taken as typed where the key
holds a text: the prompt always, paths and other texts of data and logging unless they are quoted. Elsewhere the message
shows the value quoted, ready to paste.
"""

import re
import shlex
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import islice, product
from typing import Any, NamedTuple

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, Quote, QuotedString, ValueType
from omegaconf import OmegaConf

from configs.errors import ConfigError
from configs.groups import GROUPS, options_of
from configs.schema import SEAMS, keys_that
from files.errors import LONGEST_SHOWN, one_line, shown

FREE_TEXTS, PATHS = keys_that("is_free_text"), keys_that("is_path")
TYPED_TEXTS = tuple(f"{place}." for place, seam in SEAMS.items() if seam.has_typed_texts)
FORM = re.compile(r"(?P<prefix>\+\+|\+|~)?(?P<key>[^=\s~+]+)(?:=(?P<raw>.*))?", re.DOTALL)
INTERPOLATION = re.compile(r"(\\*)\$\{")
MOST_JOBS = 10_000  # of a sweep
EXAMPLE = "overrides read key=value, for example optim.lr=1e-3"


class Given(NamedTuple):
    """An argument of the command line. raw: what stands after the first =, None if there is none."""

    text: str
    is_delete: bool
    key: str
    raw: str | None


def given(text: str) -> Given:
    """The parts of an argument. Raises: ConfigError: if it is no key=value, +key=value or ~key."""
    found = FORM.fullmatch(text)
    if found is None or (found["raw"] is None and found["prefix"] != "~"):
        hint = (
            " (no blanks around =, and quotes around a value with blanks)" if text.strip("=") in ("", "+", "~") else ""
        )
        what = "no option of this command" if text.startswith("-") else "no override"
        raise ConfigError(f"{shown(text)!r} is {what}: {EXAMPLE}{hint}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"{found['key']}={found['raw']!a} is not UTF-8 text") from None
    return Given(text, found["prefix"] == "~", found["key"], found["raw"])


def value(key: str, raw: str, *, wanted: str = "", may_be_swept: bool = True) -> Any:
    """What Hydra's grammar makes of a value: a number, a text, a list, a mapping, null.

    wanted: in words, what the key wants, if that is no text. may_be_swept: whether -m runs each of several values.
    Raises: ConfigError: if the grammar refuses the value, or there are several.
    """
    parsed = _parsed(raw)
    if isinstance(parsed, ConfigError):
        what_to_do = f"it must be {wanted}" if wanted else f"to give it as a text, quote it: {quoted(key, raw)}"
        raise ConfigError(f"{key}={shown(raw)} {parsed}; {what_to_do}")
    if parsed.is_sweep_override():
        what_to_do = "add -m to run each, or give one" if may_be_swept else "give one"
        raise ConfigError(f"{key}={shown(raw)} has several values; {what_to_do}{_as_list(key, raw)}")
    return parsed.value()


def text(key: str, raw: str) -> str:
    """The text that is meant, for a key that holds one: as typed, or without the quotes of Hydra's grammar."""
    if key in FREE_TEXTS:
        return raw
    parsed = _parsed(raw)
    quotes = isinstance(parsed, Override) and isinstance(parsed._value, QuotedString)
    return str(parsed.value()) if quotes and isinstance(parsed, Override) else raw


def escaped(text: str) -> str:
    """The text as OmegaConf must get it to give it back: ${...} would be looked up, and ??? is a missing value."""
    if text == "???":
        return "${oc.decode:'\"???\"'}"
    return INTERPOLATION.sub(lambda found: found[1] * 2 + r"\${", text)


def is_interpolation(text: str) -> bool:
    """Whether OmegaConf can read the text as one with ${...}."""
    try:
        return "${" in text and bool(OmegaConf.create({"text": text}))
    except Exception:  # whatever its grammar says of it
        return False


def is_readable(raw: str) -> bool:
    """Whether Hydra's grammar can read the value."""
    return not isinstance(_parsed(raw), ConfigError)


def has_several(raw: str) -> bool:
    """Whether Hydra's grammar reads several values."""
    parsed = _parsed(raw)
    return isinstance(parsed, Override) and parsed.is_sweep_override()


def is_typed_text(key: str) -> bool:
    """Whether the key, if it holds a text, takes it as typed."""
    return key in FREE_TEXTS or key in PATHS or key.startswith(TYPED_TEXTS)


def quoted(key: str, raw: str) -> str:
    """key="value", in quotes for a shell; key="..." for a value that is long or not printable."""
    text = raw if raw.isprintable() and len(raw) <= LONGEST_SHOWN else "..."
    return shlex.quote(f"{key}={QuotedString(text, Quote.double).with_quotes()}")


def written(value: Any) -> str:
    """Returns a value as an override holds it, from which Hydra's grammar makes the same value, floats to the last bit.

    Texts are quoted only where that is needed. Raises: ConfigError: if it is no value of YAML.
    """
    literals = {None: "null", True: "true", False: "false"}
    if value is None or isinstance(value, bool):
        return literals[value]
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        parsed = _parsed(value)
        is_kept = not isinstance(parsed, ConfigError) and not parsed.is_sweep_override() and parsed.value() == value
        return value if is_kept else QuotedString(value, Quote.double).with_quotes()
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{key}: {written(each)}' for key, each in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(written, value))}]"
    raise ConfigError(f"{shown(value)} is no value that a configuration can hold")


def expand(overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of every job of a sweep: the product over the values of each, in order.

    Several values are a,b, choice(...), range(...) and, of a group, glob(...); sort(...) and shuffle(...) order them.

    Raises: ConfigError: for an argument that is none, or whose values cannot be listed.
    """
    choices = [_values(given(each)) for each in overrides]
    jobs = [list(job) for job in islice(product(*choices), MOST_JOBS + 1)]
    if len(jobs) > MOST_JOBS:
        raise ConfigError(f"-m asks for more than {MOST_JOBS:,} runs; give fewer values")
    return jobs


def _values(each: Given) -> list[str]:
    """The override once for each of its values."""
    if each.raw is None or each.key in FREE_TEXTS:
        return [each.text]
    parsed = _parsed(each.raw)
    if isinstance(parsed, ConfigError):
        if is_typed_text(each.key) and "," not in each.raw:
            return [each.text]
        quotes = quoted(each.key, each.raw)
        raise ConfigError(f"{each.key}={shown(each.raw)} {parsed}; to give it as one text, quote it: {quotes}")
    if not parsed.is_sweep_override():
        return [each.text]
    if parsed.value_type is ValueType.INTERVAL_SWEEP:
        raise ConfigError(
            f"{each.key}={shown(each.raw)}: interval(...) lists no values; write them out, {each.key}=a,b, or let "
            "search=optuna choose them"
        )
    prefix = each.text.partition("=")[0]
    if isinstance(parsed._value, Glob):
        return [f"{prefix}={option}" for option in _matching(each, parsed._value)]
    try:
        found = list(islice(parsed.sweep_string_iterator(), MOST_JOBS + 1))
    except Exception as error:  # a range without end, a step of 0
        raise ConfigError(f"{each.key}={shown(each.raw)} gives no values: {one_line(error)}") from None
    if not found:
        raise ConfigError(f"{each.key}={shown(each.raw)} gives no values; a range ends before its last number")
    return [f"{prefix}={value}" for value in found]


def _matching(each: Given, glob: Glob) -> list[str]:
    """The options of a group that are meant."""
    if each.key not in GROUPS:
        raise ConfigError(f"{each.key}={shown(each.raw)}: glob(...) lists a group's options; {each.key} is no group")
    known = options_of(each.key)
    found: list[str] = glob.filter(known)
    if not found:
        raise ConfigError(f"{each.key}={shown(each.raw)} matches no option (all: {', '.join(known)})")
    return found


def _as_list(key: str, raw: str) -> str:
    """How the values would be one list, in words."""
    if not re.fullmatch(r"[-+\w.,]+", raw):
        return ""
    return f" (a list is written {shlex.quote(f'{key}=[{raw}]')})"


@lru_cache(maxsize=4096)
def _parsed(raw: str) -> Override | ConfigError:
    """The value as Hydra reads it, or why it does not."""
    try:
        return _parser().parse_override(f"value={raw}")
    except Exception as error:  # its own, and Python's, for a million brackets or digits
        reason = one_line(error).partition(" See https:")[0][:150]
        return ConfigError(f"cannot be read ({reason})")


@lru_cache(maxsize=1)
def _parser() -> OverridesParser:
    return OverridesParser.create()
