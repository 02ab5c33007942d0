"""castling.toml: typed settings, and reading them with messages that name line and key.

`settings` says what may be written, `reading` turns text into settings, `rules` checks
what one setting demands of another, `places` knows the line of every key and `units`
reads "64MiB" and "24h". Pure, but for `load`, which reads the file.
"""

from __future__ import annotations

from castling.config.reading import load, parse
from castling.config.settings import (
    ApplicationSettings,
    Config,
    DatabaseSettings,
    GroupSettings,
    InstallationSettings,
    LinkSettings,
    NodeSettings,
    PoolerSettings,
    RetentionSettings,
    SeedSettings,
    SpoolSettings,
)

__all__ = [
    "ApplicationSettings",
    "Config",
    "DatabaseSettings",
    "GroupSettings",
    "InstallationSettings",
    "LinkSettings",
    "NodeSettings",
    "PoolerSettings",
    "RetentionSettings",
    "SeedSettings",
    "SpoolSettings",
    "load",
    "parse",
]
