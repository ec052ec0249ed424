"""The registry of declared loaders: what a decorator is given becomes a LoaderSpec, or an error that says why not."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

from cacheworkers.config import Config
from cacheworkers.core.codec import Codec, annotation_of
from cacheworkers.core.schema_fingerprint import fingerprint_of
from cacheworkers.core.signature import Signature, is_loader_name, loader_name_of
from cacheworkers.core.tag_templates import TagTemplates
from cacheworkers.core.tag_text import TagKinds, kind_of
from cacheworkers.errors import CallError, ConfigError, DeclarationError, TagError, UnknownLoader
from cacheworkers.flows.ports import LoaderSpec
from cacheworkers.policy import Policy


class LoaderRegistry(dict[str, LoaderSpec]):
    """A cache's loaders by name."""

    def __init__(self, config: Config, tag_kinds: TagKinds | None = None) -> None:
        super().__init__()
        self._config = config
        self._tag_kinds = TagKinds() if tag_kinds is None else tag_kinds

    def add(
        self,
        function: Callable[..., Any],
        *,
        is_batch: bool,
        tags: Iterable[str] = (),
        name: str | None = None,
        rate_limit: str | None = None,
        replace: bool = False,
        **options: Any,
    ) -> LoaderSpec:
        """Declare a function with the options of `Cache.loader`; again, if it may replace one of the same module.

        Raises:
            DeclarationError: it cannot be a loader, or its name is taken.
            ConfigError: a policy field breaks a rule.
        """
        name = name or str(getattr(function, "__name__", ""))
        if name in self and not (replace and self[name].function.__module__ == function.__module__):
            raise DeclarationError(
                f"a loader's name must be unique in its cache, {name!r} is declared already, in module "
                f"{self[name].function.__module__}; replace=True declares it again in the same module"
            )
        base = options.pop("policy", None) or Policy()
        try:
            policy = base.replace(**options)
        except TypeError:
            fields = ", ".join(sorted(Policy.__dataclass_fields__))
            wrong = ", ".join(sorted(set(options) - set(Policy.__dataclass_fields__)))
            raise ConfigError(f"loader {name!r} has no option {wrong}; options are {fields}") from None
        config = self._config
        signature = Signature(name, function, version=policy.version, is_batch=is_batch)
        if isinstance(tags, str) or not isinstance(tags, Iterable):
            raise DeclarationError(
                f"tags of {name} must be a tuple of templates, got {tags!r}; `load.tag` adds those of the data"
            )
        templates = TagTemplates(
            tuple(tags), ("key",) if is_batch else signature.parameters, max_bytes=config.max_tag_bytes
        )
        self._check_tags(name, templates, signature)
        codec = Codec(annotation_of(function, is_batch))
        spec = LoaderSpec(
            name,
            function,
            policy,
            signature,
            codec,
            templates,
            is_batch,
            inspect.iscoroutinefunction(function),
            rate_limit,
            fingerprint=fingerprint_of(codec.annotation, signature.annotations, templates.declared),
        )
        self[name] = spec
        return spec

    def _check_tags(self, name: str, templates: TagTemplates, signature: Signature) -> None:
        """Make sure that arguments make the tags that rows make.

        Raises:
            DeclarationError: a field's type has several texts, or is another than that of the rows with such tags.
        """
        kinds = {}
        try:
            for field in templates.fields:
                kinds[field] = kind_of(signature.annotations[field])
            for texts, fields in templates.skeletons():
                self._tag_kinds.add_loader(f"loader {name}", texts, [kinds[field] for field in fields])
        except TagError as error:
            raise DeclarationError(f"the tags of loader {name}, {', '.join(templates.declared)}: {error}") from None

    def __missing__(self, loader: str) -> LoaderSpec:
        return self.named(loader)

    def named(self, loader: str) -> LoaderSpec:
        """Return a loader by its name.

        Raises:
            UnknownLoader: it is not declared here.
        """
        spec = self.get(loader)
        if spec is None:
            declared = ", ".join(sorted(self)) or "none"
            raise UnknownLoader(f"no loader is named {loader!r}; declared are {declared}", loader)
        return spec

    def of_call(self, call: str) -> tuple[LoaderSpec, str]:
        """Return the loader of a call's text, and the text in full: see `Signature.completed`.

        Raises:
            UnknownLoader, CallError: it is not a call of a loader that is declared here.
        """
        name = loader_name_of(call.partition("(")[0])
        if not is_loader_name(name.lower()):
            raise CallError(
                f"a call is a loader's name and its arguments as JSON, as in {min(self, default='product')}[42], got "
                f"{call[:80]!r}; declared are {', '.join(sorted(self)) or 'none'}"
            )
        spec = self.named(name)
        return spec, spec.signature.parse(spec.signature.completed(call)).text
