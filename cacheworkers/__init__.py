"""cacheworkers: web processes read, workers compute."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cacheworkers.cache import Cache
    from cacheworkers.config import Config
    from cacheworkers.core.entry import Freshness
    from cacheworkers.core.read_result import Read
    from cacheworkers.core.tag_text import tag
    from cacheworkers.errors import (
        BadArgument,
        BrokerUnavailable,
        BulkheadFull,
        CacheworkersError,
        CallError,
        CodecError,
        ConfigError,
        DeclarationError,
        EntryTooLarge,
        InvalidationIncomplete,
        KeyMissing,
        LoadError,
        LoadErrors,
        LoadTimeout,
        NamespaceTaken,
        OutboxUnavailable,
        RateLimited,
        ReadError,
        StoreError,
        StoreFull,
        StoreRefused,
        StoreUnavailable,
        TagError,
        Unavailable,
        UnknownLoader,
        UnsafeStore,
        UnwatchedWrite,
    )
    from cacheworkers.flows.explain import Explanation
    from cacheworkers.flows.inspect import Inspection
    from cacheworkers.flows.invalidate import Invalidation
    from cacheworkers.flows.keep_warm import Warming
    from cacheworkers.flows.warm_up import WarmUp
    from cacheworkers.load_context import AsyncLoad, Load, LoadCall
    from cacheworkers.loader import BatchLoader, Loader
    from cacheworkers.policy import Policy
    from cacheworkers.runtime.warm_job import WarmJob
    from cacheworkers.sql.watch.flush_changes import TagMapping

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

__all__ = [
    "AsyncLoad",
    "BadArgument",
    "BatchLoader",
    "BrokerUnavailable",
    "BulkheadFull",
    "Cache",
    "CacheworkersError",
    "CallError",
    "CodecError",
    "Config",
    "ConfigError",
    "DeclarationError",
    "EntryTooLarge",
    "Explanation",
    "Freshness",
    "Inspection",
    "Invalidation",
    "InvalidationIncomplete",
    "KeyMissing",
    "Load",
    "LoadCall",
    "LoadError",
    "LoadErrors",
    "LoadTimeout",
    "Loader",
    "NamespaceTaken",
    "OutboxUnavailable",
    "Policy",
    "RateLimited",
    "Read",
    "ReadError",
    "StoreError",
    "StoreFull",
    "StoreRefused",
    "StoreUnavailable",
    "TagError",
    "TagMapping",
    "Unavailable",
    "UnknownLoader",
    "UnsafeStore",
    "UnwatchedWrite",
    "WarmJob",
    "WarmUp",
    "Warming",
    "__version__",
    "tag",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its module; names that are not listed are error classes."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_DEFINED_IN.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
