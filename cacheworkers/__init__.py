"""cacheworkers: web processes read, workers compute."""

from cacheworkers.cache import Cache
from cacheworkers.config import Config
from cacheworkers.core.entry import Freshness
from cacheworkers.core.read_result import Read
from cacheworkers.errors import (
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
    OutboxUnavailable,
    ReadError,
    StoreError,
    StoreFull,
    StoreUnavailable,
    TagError,
    UnknownLoader,
    UnsafeStore,
    UnwatchedWrite,
)
from cacheworkers.flows.explain import Explanation
from cacheworkers.flows.inspect import Inspection
from cacheworkers.flows.invalidate import Invalidation
from cacheworkers.flows.warm import Warming
from cacheworkers.flows.warm_up import WarmUp
from cacheworkers.load_context import AsyncLoad, Load
from cacheworkers.loader import BatchLoader, Loader
from cacheworkers.policy import Policy
from cacheworkers.runtime.warm_job import WarmJob

__version__ = "0.1.0"

__all__ = [
    "AsyncLoad",
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
    "LoadError",
    "LoadErrors",
    "LoadTimeout",
    "Loader",
    "OutboxUnavailable",
    "Policy",
    "Read",
    "ReadError",
    "StoreError",
    "StoreFull",
    "StoreUnavailable",
    "TagError",
    "UnknownLoader",
    "UnsafeStore",
    "UnwatchedWrite",
    "WarmJob",
    "WarmUp",
    "Warming",
    "__version__",
]
