"""cacheworkers: web processes read, workers compute."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cacheworkers.cache import Cache as Cache
    from cacheworkers.config import Config as Config
    from cacheworkers.core.entry import Freshness as Freshness
    from cacheworkers.core.read_result import Read as Read
    from cacheworkers.core.tag_text import tag as tag
    from cacheworkers.errors import (
        BadArgument as BadArgument,
        BrokerUnavailable as BrokerUnavailable,
        BulkheadFull as BulkheadFull,
        CacheworkersError as CacheworkersError,
        CallError as CallError,
        CodecError as CodecError,
        ConfigError as ConfigError,
        DeclarationError as DeclarationError,
        EntryTooLarge as EntryTooLarge,
        InvalidationIncomplete as InvalidationIncomplete,
        KeyMissing as KeyMissing,
        LoadError as LoadError,
        LoadErrors as LoadErrors,
        LoadTimeout as LoadTimeout,
        NamespaceTaken as NamespaceTaken,
        OutboxUnavailable as OutboxUnavailable,
        RateLimited as RateLimited,
        ReadError as ReadError,
        StoreError as StoreError,
        StoreFull as StoreFull,
        StoreRefused as StoreRefused,
        StoreUnavailable as StoreUnavailable,
        TagError as TagError,
        Unavailable as Unavailable,
        UnknownLoader as UnknownLoader,
        UnsafeStore as UnsafeStore,
        UnwatchedWrite as UnwatchedWrite,
    )
    from cacheworkers.flows.explain import Explanation as Explanation
    from cacheworkers.flows.inspect import Inspection as Inspection
    from cacheworkers.flows.invalidate import Invalidation as Invalidation
    from cacheworkers.flows.keep_warm import Warming as Warming
    from cacheworkers.flows.warm_up import WarmUp as WarmUp
    from cacheworkers.load_context import AsyncLoad as AsyncLoad, Load as Load, LoadCall as LoadCall
    from cacheworkers.loader import BatchLoader as BatchLoader, Loader as Loader
    from cacheworkers.policy import Policy as Policy
    from cacheworkers.runtime.warm_job import WarmJob as WarmJob
    from cacheworkers.sql.watch.flush_changes import TagMapping as TagMapping

__version__ = "0.2.0"

#: Public name -> the module that defines it; imported when first used, so that `import cacheworkers` costs little.
_DEFINED_IN = {
    "AsyncLoad": "load_context",
    "BatchLoader": "loader",
    "Cache": "cache",
    "Config": "config",
    "Explanation": "flows.explain",
    "Freshness": "core.entry",
    "Inspection": "flows.inspect",
    "Invalidation": "flows.invalidate",
    "Load": "load_context",
    "LoadCall": "load_context",
    "Loader": "loader",
    "Policy": "policy",
    "Read": "core.read_result",
    "TagMapping": "sql.watch.flush_changes",
    "WarmJob": "runtime.warm_job",
    "WarmUp": "flows.warm_up",
    "Warming": "flows.keep_warm",
    "tag": "core.tag_text",
}

#: Those of `errors`.
_ERRORS = (
    "BadArgument BrokerUnavailable BulkheadFull CacheworkersError CallError CodecError ConfigError DeclarationError "
    "EntryTooLarge InvalidationIncomplete KeyMissing LoadError LoadErrors LoadTimeout NamespaceTaken "
    "OutboxUnavailable RateLimited ReadError StoreError StoreFull StoreRefused StoreUnavailable TagError Unavailable "
    "UnknownLoader UnsafeStore UnwatchedWrite"
).split()

__all__ = [*_DEFINED_IN, *_ERRORS, "__version__"]


def __getattr__(name: str) -> Any:
    """Import a public name from its module; names that are not listed are error classes."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_DEFINED_IN.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
