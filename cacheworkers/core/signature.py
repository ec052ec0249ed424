"""Signature: a loader's parameters; turns arguments into call texts, `product[42]`, `search["chair",1]`, and back.

A call's text is the loader's name, its version if that is not 1, and the canonical arguments as a JSON array in the
order of the signature.  It names the entry everywhere: in Redis, L1, task messages, Flower and logs.
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from cacheworkers.core.annotations import bare, hints_of, refuse_what_json_lacks
from cacheworkers.core.canonical_arguments import CONVERSION_ERRORS, EXACT, as_canonical, as_exact, is_keyable, plain
from cacheworkers.errors import BadArgument, CallError, DeclarationError

_RULE = "use builtins, dates, UUID, Decimal, Enum, or a Struct or dataclass of these"
_NAME = re.compile(r"[a-z_][a-z0-9_.]{0,99}")
_encode = msgspec.json.Encoder(order="deterministic").encode

_LEAST, _WIDE = -(2**63), 2**63
#: Most texts of one loader's calls that are remembered.
_MAX_TEXTS = 8192
_NAMED = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class Call(msgspec.Struct, frozen=True, gc=False):
    """One call of a loader: its text, and the canonical arguments."""

    text: str
    arguments: tuple[Any, ...]


class Signature:
    """Turns arguments into calls, and call texts back into arguments.

    Attributes:
        parameters: the names of the parameters, without `load`; of a batch loader `key`, one element of the list.
        positional_keys: raw positional arguments that are equal always mean the same call.
    """

    parameters: tuple[str, ...]

    def __init__(
        self, name: str, function: Callable[..., Any], *, version: int = 1, max_bytes: int = 512, is_batch: bool = False
    ) -> None:
        """
        Args:
            version: part of the text, if it is not 1.
            max_bytes: longest text of a call.
            is_batch: the function is `(load, keys: list[K])`, and a call has one key.

        Raises:
            DeclarationError: the name is not `[a-z_][a-z0-9_.]*`, or the function's parameters cannot make a call.
        """
        if not is_loader_name(name):
            raise DeclarationError(f"a loader's name must match [a-z_][a-z0-9_.]* (at most 100), got {name!r}")
        self.name = name
        self._max_bytes = max_bytes
        self._prefix = name if version == 1 else f"{name}@{version}"
        parameters = _parameters(name, function)
        hints = hints_of(function)
        if is_batch:
            if len(parameters) != 1:
                raise DeclarationError(
                    f"batch loader {name} must take exactly (load, keys), "
                    f"got (load{''.join(f', {p.name}' for p in parameters)})"
                )
            keys = bare(hints.get(parameters[0].name, list[Any]))
            types = [(typing.get_args(keys) or (Any,))[0]]
            parameters = [inspect.Parameter("key", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
        else:
            types = [hints.get(p.name, Any) for p in parameters]
        for parameter, each in zip(parameters, types, strict=True):
            refuse_what_json_lacks(f"parameter {parameter.name!r} of {name}", each, _RULE)
        self.parameters = tuple(p.name for p in parameters)
        self.positional_keys = all(is_keyable(each) for each in types)
        self._is_batch = is_batch
        self._signature = inspect.Signature(parameters)
        self._types = types
        #: Parameter -> its annotation; of a batch loader, that of one key.
        self.annotations = dict(zip(self.parameters, types, strict=True))
        self._exact = tuple(types) if all(each in EXACT for each in types) else None
        # The text of an int is at most 20 characters, so that its length needs no look.
        self._is_one_int = self._exact == (int,) and len(self._prefix) + 22 <= max_bytes
        self._texts = _Texts(self._text_of_int if self._is_one_int else self._text_of)
        self._only = types[0] if self._exact is not None and len(types) == 1 else None
        self._decode = msgspec.json.Decoder(tuple[tuple(types)] if types else tuple[()]).decode  # type: ignore[misc]  # made at run time
        self._defaults: dict[str, Any] = {}
        for parameter, each in zip(parameters, types, strict=True):
            if parameter.default is not inspect.Parameter.empty:
                try:
                    msgspec.json.decode(_encode(as_canonical(parameter.default, each)), type=each)
                except CONVERSION_ERRORS as error:
                    raise DeclarationError(
                        f"the default of {parameter.name!r} in {name} must fit its annotation, "
                        f"got {parameter.default!r}: {error}"
                    ) from None
                self._defaults[parameter.name] = parameter.default

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """Return the call of these arguments, defaults filled and canonicalised by annotation.

        Raises:
            CallError: they do not fit the signature, are not JSON, or make too long a text.
        """
        if self._is_one_int and len(args) == 1 and not kwargs:
            [number] = args
            if type(number) is int and _LEAST <= number < _WIDE:
                return Call(f"{self._prefix}[{number}]", args)
        given = self._given(args, kwargs)
        try:
            if self._exact is not None:
                if tuple(map(type, given)) != self._exact:
                    given_types = zip(given, self._types, strict=True)
                    given = tuple(as_exact(value, each) for value, each in given_types)
                canonical, text = given, _encode(given)
            else:
                sent = [as_canonical(value, each) for value, each in zip(given, self._types, strict=True)]
                # What a worker will read from the text is what is canonical: both sides load with the same arguments.
                canonical = self._decode(_encode(sent))
                if self._is_batch:
                    hash(canonical)  # the batch loader returns a dict by it
                text = _encode([plain(value) for value in canonical])
        except CONVERSION_ERRORS as error:
            named = ", ".join(f"{name}={value!r}"[:80] for name, value in zip(self.parameters, given, strict=True))
            raise BadArgument(f"{self.name}({named}) is not a valid call: {error}") from None
        length = len(self._prefix) + len(text)
        if length > self._max_bytes:
            shown = (self._prefix.encode() + text)[:60].decode(errors="ignore")
            raise BadArgument(f"a call's text may have at most {self._max_bytes} bytes, {shown}... has {length}")
        return Call(self._prefix + text.decode(), canonical)

    def texts(self, keys: Iterable[Any]) -> dict[Any, str]:
        """Return key -> text of the call of that one argument; raises as `bind` does."""
        known, kind = self._texts, self._only
        if self.positional_keys:  # equal keys are one call
            keys = list(keys)
            if {*map(type, keys)} == {kind}:
                return dict(zip(keys, map(known.__getitem__, keys), strict=True))
            return {key: known[key] if type(key) is kind else self._text_of(key) for key in keys}
        found: dict[Any, str] = {}
        for key in keys:
            text = self._text_of(key)
            try:
                there = found.setdefault(key, text)
            except TypeError:
                raise BadArgument(
                    f"keys of {self.name} must be hashable, since a dict is returned, got {key!r}"
                ) from None
            if there != text:
                raise BadArgument(f"{there} and {text} are two calls with equal keys; read them one by one")
        return found

    def _text_of(self, key: Any) -> str:
        return self.bind((key,), {}).text

    def _text_of_int(self, key: int) -> str:
        return f"{self._prefix}[{key}]" if _LEAST <= key < _WIDE else self._text_of(key)

    def parse(self, text: str) -> Call:
        """Return the call that a text names; the reverse of `bind`.

        Raises:
            CallError: the text is another loader's, another version's, or no text that `bind` makes.
        """
        if not text.startswith(self._prefix + "["):
            raise CallError(
                f"a call of {self.name} is its name and arguments as JSON, got {text[:80]!r}; {self._example}"
            )
        try:
            arguments = self._decode(text[len(self._prefix) :])
        except CONVERSION_ERRORS as error:
            raise CallError(
                f"{text[:80]!r} is not a call of {self.name}{self._signature}: {error}; {self._example}"
            ) from None
        call = self.bind(arguments, {})
        if call.text != text:  # two texts of one call would be two entries, and an invalidation finds but one
            raise CallError(f"a call's text must be canonical, {call.text[:80]!r}, got {text[:80]!r}")
        return call

    def completed(self, text: str) -> str:
        """Return the text of the call that people mean: `shelf(7)` is `shelf[7]`, and `shelf` is `shelf[]`.

        Arguments that are left out are their defaults; the version is this one.  Any other text is returned as it is.

        Raises:
            CallError: an argument without a default is left out.
        """
        size = len(self.name)
        bracket, inner = text[size : size + 1], text[size + 1 :]
        if text.startswith(self.name) and (not bracket or bracket == "[" or bracket + inner[-1:] == "()"):
            text = f"{self._prefix}[{inner}" if bracket == "[" else f"{self._prefix}[{inner[:-1]}]"
        try:
            given = msgspec.json.decode(text.removeprefix(self._prefix), type=list[msgspec.Raw])
        except CONVERSION_ERRORS:
            return text
        left = self.parameters[len(given) :]
        if not left or not text.startswith(self._prefix):
            return text
        if missing := ", ".join(name for name in left if name not in self._defaults):
            raise CallError(
                f"{text[:80]!r} is not a call of {self.name}{self._signature}: {missing} missing; {self._example}"
            )
        rest = [as_canonical(self._defaults[name], self.annotations[name]) for name in left]
        full = _encode([*given, *rest])
        try:
            return self.bind(self._decode(full), {}).text
        except (*CONVERSION_ERRORS, CallError):  # `parse` says which argument is wrong
            return self._prefix + full.decode()

    @property
    def _example(self) -> str:
        """Say how a call of this loader is written."""
        samples: dict[Any, str] = {int: "42", str: '"text"', float: "1.5", bool: "true"}
        given = ",".join(samples.get(self.annotations[name], f"<{name}>") for name in self.parameters)
        return f"write '{self._prefix}[{given}]', arguments as JSON, in quotes for the shell"

    def of_this_version(self, text: str) -> str | None:
        """Return the text of the same arguments under this version; None if they do not fit it.

        What was hot before a deploy is hot after it.
        """
        try:
            return self.parse(self._prefix + text[text.index("[") :]).text
        except (CallError, ValueError):
            return None

    def _given(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """Return one argument for each parameter; by hand, since `inspect` takes several microseconds."""
        left = self.parameters[len(args) :]
        by_name = kwargs.keys() & left if kwargs else kwargs
        if len(by_name) == len(kwargs) and len(args) + len(left) == len(self.parameters):
            try:
                return args + tuple(kwargs[name] if name in kwargs else self._defaults[name] for name in left)
            except KeyError:
                pass
        try:
            return self._signature.bind(*args, **kwargs).args
        except TypeError as error:
            unknown = [f"{name}={value!r}"[:80] for name, value in kwargs.items() if name not in self.parameters]
            says = f"no parameter for {', '.join(unknown)}" if unknown else str(error)
            raise CallError(f"{self.name}{self._signature} is called with wrong arguments: {says}") from None


class _Texts(dict[Any, str]):
    """Texts of calls of one argument of an exact type, as far as they are known: what is read is read again."""

    def __init__(self, text_of: Callable[[Any], str]) -> None:
        self._text_of = text_of

    def __missing__(self, key: Any) -> str:
        if len(self) >= _MAX_TEXTS:
            self.clear()
        text = self[key] = self._text_of(key)
        return text


def is_loader_name(name: object) -> bool:
    """Return whether a loader may be called so."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def loader_name_of(text: str) -> str:
    """Return the loader's name of a call's text."""
    return text.partition("[")[0].partition("@")[0]


def version_of(text: str) -> int | None:
    """Return the version of a call's text: 2 of `product@2[42]`, 1 of `product[42]`; None where it is no number."""
    _, at, version = text.partition("[")[0].partition("@")
    if not at:
        return 1
    return int(version) if version.isdecimal() else None


def _parameters(name: str, function: Callable[..., Any]) -> list[inspect.Parameter]:
    """Return a loader's parameters after `load`, without their annotations."""
    signature = inspect.signature(function)
    parameters = list(signature.parameters.values())
    if not parameters or parameters[0].kind not in _NAMED or parameters[0].name.strip("_") not in ("load", ""):
        raise DeclarationError(
            f"{name} must take `load` as its first parameter (or `_load`, `_`), got {name}{signature}"
        )
    for parameter in parameters[1:]:
        if parameter.kind is not inspect.Parameter.POSITIONAL_OR_KEYWORD:
            raise DeclarationError(
                f"{name} may not have the parameter `{parameter}`: every argument must be one plain, named parameter"
            )
    return [parameter.replace(annotation=inspect.Parameter.empty) for parameter in parameters[1:]]
