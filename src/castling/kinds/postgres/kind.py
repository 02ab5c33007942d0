"""The kind `postgres`: its parts, built from a stream's settings. Building connects to nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from castling.config import DatabaseSettings, PoolerSettings
from castling.kinds.base import Auditor, Clone, Copied, Finding, Moves, PartAction, PoolAction, Stream, Target
from castling.kinds.postgres.auditor import PostgresAuditor
from castling.kinds.postgres.capture import PostgresCapture
from castling.kinds.postgres.check import check_stream
from castling.kinds.postgres.clone import clone_environment, clone_names, close_clone, open_clone
from castling.kinds.postgres.decoder import PostgresDecoder
from castling.kinds.postgres.definition_watch import DefinitionWatch
from castling.kinds.postgres.foreign_notes import list_foreign_writes
from castling.kinds.postgres.foreign_watch import ForeignWatch
from castling.kinds.postgres.forget import forget_stream
from castling.kinds.postgres.lanes_target import LanesTarget
from castling.kinds.postgres.left_behind import copy_left_behind
from castling.kinds.postgres.naming import Naming
from castling.kinds.postgres.parts import move_parts
from castling.kinds.postgres.pooler import pool
from castling.kinds.postgres.schema_compare import compare_schema
from castling.kinds.postgres.seed_source import PostgresSeedSource
from castling.kinds.postgres.seed_target import PostgresSeedTarget
from castling.kinds.postgres.standby import holds_commits, release_commits
from castling.kinds.postgres.switch import PostgresMoves
from castling.kinds.postgres.target import PostgresTarget

__all__ = ["KIND", "PostgresKind"]


def _source(stream: Stream) -> DatabaseSettings:
    return stream.settings.databases[stream.settings.primary]


def _target(stream: Stream) -> DatabaseSettings:
    return stream.settings.databases[stream.backup]


class PostgresKind:
    """Implements `kinds.base.Kind`."""

    @property
    def moves(self) -> Moves:
        return PostgresMoves()

    async def pool(self, pooler: PoolerSettings, action: PoolAction, primary: str) -> dict[str, Any]:
        return await pool(pooler, action, primary)

    def capture(self, stream: Stream) -> PostgresCapture:
        return PostgresCapture(stream.group, stream.backup, stream.settings, _source(stream))

    def seed_source(self, stream: Stream) -> PostgresSeedSource:
        node = stream.settings.capture_on or stream.settings.primary
        return PostgresSeedSource(
            stream.group,
            stream.backup,
            stream.settings,
            _source(stream),
            postgres_bin=stream.config.nodes[node].postgres_bin,
        )

    def seed_target(self, stream: Stream) -> PostgresSeedTarget:
        return PostgresSeedTarget(
            stream.group,
            _target(stream),
            postgres_bin=stream.config.nodes[stream.backup].postgres_bin,
            naming=Naming(stream.settings.rename),
            decoder=lambda: self.decoder(stream),
        )

    def decoder(self, stream: Stream) -> PostgresDecoder:
        naming = Naming(stream.settings.rename)
        return PostgresDecoder(
            piece_bytes=max(1 << 20, stream.settings.apply_memory // 4),
            named=naming.target if naming else None,
            filtered=bool(stream.settings.rows),
            row_max=stream.settings.row_max,
        )

    def target(self, stream: Stream) -> Target:
        definitions = DefinitionWatch(stream.group, stream.settings, _target(stream), is_target=True)
        main = PostgresTarget(
            stream.group,
            _target(stream),
            seeded=True,
            definitions=definitions,
            foreign=ForeignWatch(
                stream.group, _target(stream), watching=stream.settings.foreign_writes == "watch"
            ),
            on_error=stream.settings.on_error,
            naming=Naming(stream.settings.rename).digest,
            schema=stream.settings if stream.settings.ddl == "carry" else None,
        )
        lanes = stream.settings.lanes
        return main if lanes == 1 else LanesTarget(main, stream.group, _target(stream), lanes)

    async def check(self, stream: Stream) -> list[Finding]:
        return await check_stream(stream)

    async def copy_left_behind(self, stream: Stream) -> list[Copied]:
        return await copy_left_behind(stream)

    async def move_parts(
        self, stream: Stream, action: PartAction, parts: Sequence[str], reason: str
    ) -> list[dict[str, Any]]:
        return await move_parts(stream, action, parts, reason)

    async def foreign_writes(
        self, stream: Stream, *, since_s: float | None, acknowledge: str | None
    ) -> list[dict[str, Any]]:
        return await list_foreign_writes(stream, since_s=since_s, acknowledge=acknowledge)

    async def open_clone(self, stream: Stream, identity: str) -> Clone:
        return await open_clone(stream.group, _target(stream), identity)

    async def close_clone(self, stream: Stream, identity: str) -> bool:
        return await close_clone(stream.group, _target(stream), identity)

    async def clones(self, stream: Stream) -> list[str]:
        return await clone_names(stream.group, _target(stream))

    def clone_environment(self, stream: Stream, clone: str, secrets: Path) -> dict[str, str]:
        return clone_environment(_target(stream), clone, secrets)

    def auditor(self, stream: Stream) -> Auditor:
        return PostgresAuditor(stream)

    async def compare_schema(self, stream: Stream) -> list[Finding]:
        return await compare_schema(stream)

    async def release(self, stream: Stream, *, failed: bool) -> bool:
        settings = stream.settings
        # what was deployed asynchronous since may have been synchronous when its last process died
        if failed and settings.delivery == "sync" and settings.on_sync_loss != "degrade":
            return not await holds_commits(stream.group, settings.backups, _source(stream))
        await release_commits(stream.group, settings.backups, _source(stream))
        return True

    async def forget(self, stream: Stream, *, target: bool = True) -> None:
        await forget_stream(stream, target=target)


KIND = PostgresKind()
