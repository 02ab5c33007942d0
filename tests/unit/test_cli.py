"""The command line against two real agents over TLS: results, exit codes, repeats, secrets."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import castling
from castling.cli.main import build, main
from castling.cli.reference import commands
from castling.cli.results import RESULTS, undocumented
from castling.cli.status import HEAD, details, seconds_text, table
from castling.control.client import client_context
from castling.control.home import Home, node_tls
from castling.control.store import Store
from castling.errors import LinkForeign
from castling.testing.servers import free_port

GROUP = """
[groups.orders]
kind = "postgres"
primary = "east"
backups = ["west"]
[groups.orders.databases.east]
host = "127.0.0.1"
port = 1
dbname = "a"
user = "u"
[groups.orders.databases.west]
host = "127.0.0.1"
port = 1
dbname = "b"
user = "u"
"""


@dataclass
class Answer:
    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        said = json.loads(self.out)
        assert said["ok"] is True, said
        return said["data"]

    @property
    def error(self) -> dict[str, Any]:
        said = json.loads(self.out)
        assert said["ok"] is False
        found: dict[str, Any] = said["error"]
        return found


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    for name in [name for name in os.environ if name.startswith("CASTLING_")]:
        monkeypatch.delenv(name)

    def call(*arguments: object) -> Answer:
        capsys.readouterr()
        code = main([str(each) for each in arguments])
        said = capsys.readouterr()
        return Answer(code, said.out, said.err)

    return call


@dataclass
class Two:
    """Two initialised nodes whose agents run."""

    east: Path
    west: Path
    ports: list[int]
    agents: list[subprocess.Popen[bytes]]

    @property
    def text(self) -> str:
        api, link, api2, link2 = self.ports
        return (
            '[installation]\nname = "shop"\n'
            f'[nodes.east]\napi = "127.0.0.1:{api}"\nlink = "127.0.0.1:{link}"\n'
            f'[nodes.west]\napi = "127.0.0.1:{api2}"\nlink = "127.0.0.1:{link2}"\n'
        )


def start_agent(home: Path, port: int) -> subprocess.Popen[bytes]:
    log = (home.parent / f"{home.name}.log").open("ab")
    agent = subprocess.Popen(
        [sys.executable, "-m", "castling.cli.main", "agent", "--home", str(home)], stdout=log, stderr=log
    )
    log.close()
    deadline = time.monotonic() + 60
    while True:
        assert agent.poll() is None and time.monotonic() < deadline, (
            home.parent / f"{home.name}.log"
        ).read_text()
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return agent
        except OSError:
            time.sleep(0.05)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Two]:
    folder = tmp_path_factory.mktemp("nodes")
    ports = [free_port() for _ in range(4)]
    made = Two(folder / "east", folder / "west", ports, [])
    for key in [key for key in os.environ if key.startswith("CASTLING_")]:
        del os.environ[key]
    init = ["init", "shop", "--node", "east", "--home", str(made.east)]
    assert main([*init, "--api", f"127.0.0.1:{ports[0]}", "--link", f"127.0.0.1:{ports[1]}", "--json"]) == 0
    made.agents.append(start_agent(made.east, ports[0]))
    token = folder / "token"
    with token.open("w") as file:
        subprocess.run(
            [sys.executable, "-m", "castling.cli.main", "invite", "west", "--home", str(made.east)],
            stdout=file,
            check=True,
            timeout=30,
        )
    join = ["join", str(token), "--home", str(made.west), "--node", "west"]
    assert main([*join, "--api", f"127.0.0.1:{ports[2]}", "--link", f"127.0.0.1:{ports[3]}", "--json"]) == 0
    made.agents.append(start_agent(made.west, ports[2]))
    try:
        yield made
    finally:
        for agent in made.agents:
            agent.send_signal(signal.SIGTERM)
        for agent in made.agents:
            assert agent.wait(20) == 0, "an agent ends cleanly on SIGTERM"


# --- without an agent -------------------------------------------------------------------------


def test_init_is_safe_to_repeat_and_shows_its_token_once(run, tmp_path: Path) -> None:
    first = run("init", "shop", "--node", "east", "--home", tmp_path / "h", "--json")
    assert first.code == 0 and first.data["result"] == "initialised"
    token = first.data["token"]
    before = {path: path.read_bytes() for path in (tmp_path / "h").rglob("*") if path.is_file()}
    again = run("init", "shop", "--node", "east", "--home", tmp_path / "h", "--json")
    assert again.code == 0
    assert again.data["result"] == "already_initialised" and again.data["node"] == "east"
    assert again.data["token"] is None and token not in again.out
    after = {path: path.read_bytes() for path in (tmp_path / "h").rglob("*") if path.is_file()}
    assert before == after
    assert undocumented("init", first.data) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["other", "--node", "east"],
        ["shop", "--node", "north"],
        ["shop", "--node", "east", "--api", "127.0.0.1:7000"],
    ],
)
def test_a_home_is_not_taken_for_another_node(run, tmp_path: Path, arguments: list[str]) -> None:
    run("init", "shop", "--node", "east", "--home", tmp_path / "h")
    refused = run("init", *arguments, "--home", tmp_path / "h", "--json")
    assert (refused.code == 11 and "east" in refused.out + refused.err) or "shop" in refused.out


def test_help_is_told_whole_and_the_version_too(run) -> None:
    for words in ([], ["group"], ["journal"], ["token"]):
        told = run(*words, "-h")
        assert told.code == 0 and "...\n" not in told.out.partition("\n")[2], words
    assert run("--version").out == f"castling {castling.__version__}\n"


def test_private_files_are_private(run, tmp_path: Path) -> None:
    run("init", "shop", "--node", "east", "--home", tmp_path / "h")
    for path in (tmp_path / "h").rglob("*"):
        wanted = 0o700 if path.is_dir() else 0o600
        assert path.stat().st_mode & 0o777 & ~wanted == 0, path


def test_a_token_that_is_not_to_be_saved_is_nowhere(run, tmp_path: Path) -> None:
    made = run("init", "shop", "--node", "east", "--home", tmp_path / "h", "--no-save-token", "--json").data
    secret = made["token"].split("_", 2)[2].encode()
    assert not any(secret in path.read_bytes() for path in (tmp_path / "h").rglob("*") if path.is_file())


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["init"], ["init", "x"], ["group", "start"], ["group", "status", "--x"]]
)
def test_a_wrong_call_is_usage_in_both_forms(run, arguments: list[str]) -> None:
    plain = run(*arguments)
    assert plain.code == 2 and plain.out == ""
    assert plain.err.startswith("error[usage]: ") and "hint: " in plain.err
    told = run(*arguments, "--json")
    assert told.code == 2 and told.error["code"] == "usage"


def test_names_and_addresses_are_checked(run, tmp_path: Path) -> None:
    for arguments in (
        ["init", "../x", "--node", "east"],
        ["init", "shop", "--node", "East"],
        ["init", "shop", "--node", "east", "--api", "nowhere"],
    ):
        assert run(*arguments, "--home", tmp_path / "h").code == 2
        assert not (tmp_path / "h").exists(), "nothing is made by a wrong call"


def test_no_home_is_said(run, tmp_path: Path) -> None:
    answer = run("group", "status", "--home", tmp_path / "none")
    assert answer.code == 11 and "error[not-initialised]" in answer.err


def test_no_agent_is_said(run, tmp_path: Path) -> None:
    port = free_port()
    run("init", "shop", "--node", "east", "--home", tmp_path / "h", "--api", f"127.0.0.1:{port}")
    answer = run("group", "status", "--home", tmp_path / "h", "--json")
    assert answer.code == 14 and answer.error["code"] == "agent-unreachable" and answer.error["retryable"]


def test_version(run) -> None:
    assert run("version").out.startswith("castling ")
    assert undocumented("version", run("version", "--json").data) == []


def test_optimised_python_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-O", "-m", "castling.cli.main", "version"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and "python -O" in done.stderr and done.stdout == ""


def test_every_command_documents_its_result_and_takes_the_common_options() -> None:
    found = dict(commands())
    assert set(found) <= set(RESULTS), "a command without documented fields"
    assert set(RESULTS) - {"demo"} <= set(found), "documented fields of no command"
    for words, each in found.items():
        if words == "demo":
            continue
        assert {"home", "json", "agent", "token_file"} <= {param.name for param in each.params}, words
        assert each.help, words
        for param in each.params:
            if param.param_type_name == "option" and param.name != "help":
                assert param.envvar and param.envvar.startswith("CASTLING_"), (words, param.name)
    assert build() is not None


def test_an_undocumented_field_would_be_noticed() -> None:
    assert undocumented("version", {"version": "1", "extra": 1}) == ["extra"]
    assert undocumented("token list", [{"id": "1", "secret": "x"}]) == ["secret"]
    assert undocumented("group status", [{"streams": [{"backup": "west", "speed": 1}]}]) == [
        "streams[].speed"
    ]


# --- with agents ------------------------------------------------------------------------------


def test_tokens_from_making_to_revoking(
    run, two: Two, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = run("token", "create", "bob", "--role", "viewer", "--home", two.east, "--json").data
    assert undocumented("token create", made) == []
    rows = run("token", "list", "--home", two.east, "--json").data
    assert undocumented("token list", rows) == []
    assert made["id"] in {row["id"] for row in rows}
    file = tmp_path / "bob"
    file.write_text(made["token"] + "\n")
    assert run("node", "list", "--home", two.east, "--token-file", file).code == 0
    refused = run("token", "list", "--home", two.east, "--token-file", file, "--json")
    assert refused.code == 13 and refused.error["code"] == "access-denied"
    assert run("token", "revoke", made["id"], "--home", two.east).code == 2, "not without --yes"
    assert (
        run("token", "revoke", made["id"], "--home", two.east, "--yes", "--json").data["result"] == "revoked"
    )
    again = run("token", "revoke", made["id"], "--home", two.east, "--yes", "--json")
    assert again.code == 0 and again.data["result"] == "already_revoked"
    monkeypatch.setenv("CASTLING_TOKEN", made["token"])
    answer = run("node", "list", "--home", two.east)
    assert answer.code == 13 and made["token"] not in answer.err


def test_the_owner_of_a_node_makes_a_token_when_all_are_lost(run, two: Two) -> None:
    """With the agent running; and it may do what an administrator may."""
    (two.east / "admin.token").rename(two.east / "lost")
    try:
        refused = run("token", "list", "--home", two.east, "--json")
        assert refused.code == 13 and "token recover" in refused.error["hint"]
        made = run("token", "recover", "--home", two.east, "--json").data
        assert undocumented("token recover", made) == [] and made["token"].startswith("ct_")
        assert run("token", "list", "--home", two.east).code == 0
        with Store(Home(two.east).state) as store:
            assert store.access_entries(1)[0]["action"] == "token recover"
    finally:
        (two.east / "lost").rename(two.east / "admin.token")


def test_a_join_token_counts_once(run, two: Two, tmp_path: Path) -> None:
    invited = run("invite", "north", "--home", two.east, "--json").data
    assert undocumented("invite", invited) == []
    file = tmp_path / "token"
    file.write_text(invited["token"])
    assert run("join", file, "--node", "south", "--home", tmp_path / "s").code == 2
    first = run(
        "join", file, "--home", tmp_path / "n", "--api", "127.0.0.1:1", "--link", "127.0.0.1:2", "--json"
    )
    assert first.data["result"] == "joined" and first.data["node"] == "north"
    assert undocumented("join", first.data) == []
    second = run("join", file, "--home", tmp_path / "n2", "--json")
    assert second.code == 13 and "used" in second.error["message"]
    assert run("join", file, "--home", tmp_path / "n", "--json").data["result"] == "already_joined"
    joined = run("node", "list", "--home", two.east, "--json").data
    assert undocumented("node list", joined) == []
    assert {
        "node": "north",
        "api": "127.0.0.1:1",
        "link": "127.0.0.1:2",
        "deployed": False,
        "here": False,
    } in joined


def test_join_refuses_another_installation(run, two: Two, tmp_path: Path) -> None:
    from castling.control.access import Invitation

    text = run("invite", "north", "--home", two.east).out.strip()
    real = Invitation.decode(text)
    forged = Invitation(
        node=real.node, address=real.address, fingerprint="0" * 64, id=real.id, secret=real.secret
    )
    file = tmp_path / "token"
    file.write_text(forged.encode())
    answer = run("join", file, "--home", tmp_path / "n", "--json")
    assert answer.code == 46 and answer.error["code"] == "link-foreign-certificate"
    assert not (tmp_path / "n" / "node" / "name").exists()


def test_only_a_node_of_the_installation_is_believed(two: Two, run, tmp_path: Path) -> None:
    run("init", "shop", "--node", "east", "--home", tmp_path / "h")
    answer = run(
        "group", "status", "--home", tmp_path / "h", "--agent", f"127.0.0.1:{two.ports[0]}", "--json"
    )
    assert answer.code == 46 and answer.error["code"] == "link-foreign-certificate"
    home = Home(two.east)
    context = client_context(home.ca_cert, identify=node_tls(home).peer_node, expect="west")
    raw = socket.create_connection(("127.0.0.1", two.ports[0]))
    with raw, pytest.raises(LinkForeign, match="node east answered where west was expected"):
        context.wrap_socket(raw)


def test_older_tls_is_refused(two: Two) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with socket.create_connection(("127.0.0.1", two.ports[0])) as raw, pytest.raises(ssl.SSLError):
        context.wrap_socket(raw)
    context.maximum_version = ssl.TLSVersion.TLSv1_3
    with socket.create_connection(("127.0.0.1", two.ports[0])) as raw, context.wrap_socket(raw) as tls:
        assert tls.version() == "TLSv1.3"


def test_deploy_reaches_all_nodes_and_is_safe_to_repeat(run, two: Two, tmp_path: Path) -> None:
    file = tmp_path / "castling.toml"
    file.write_text(two.text + GROUP)
    deploy = ("deploy", "--config", file, "--home", two.east)
    dry = run(*deploy, "--dry-run", "--json")
    assert dry.data["result"] == "planned" and not (two.east / "deployed.toml").exists()
    asked = run(*deploy)
    assert asked.code == 2 and "--yes" in asked.err and not (two.east / "deployed.toml").exists()
    assert "+ groups.orders.primary = east" in asked.err
    done = run(*deploy, "--yes", "--json")
    assert done.data["result"] == "deployed", done
    assert undocumented("deploy", done.data) == []
    for home in (two.east, two.west):
        assert (home / "deployed.toml").read_text() == two.text + GROUP
    assert run(*deploy, "--yes", "--json").data["result"] == "already_deployed"
    trees = run("group", "status", "--home", two.west, "--json").data
    assert undocumented("group status", trees) == []
    assert trees[0]["state"] == "stopped" and trees[0]["streams"][0]["rpo_s"] is None
    assert undocumented("group list", run("group", "list", "--home", two.west, "--json").data) == []
    stopped = run("group", "stop", "orders", "--yes", "--home", two.west, "--json").data
    assert stopped["result"] == "already_stopped" and undocumented("group stop", stopped) == []
    removed = run("group", "remove", "orders", "--yes", "--home", two.west, "--json").data
    assert removed["result"] == "already_removed" and undocumented("group remove", removed) == []
    assert run("group", "start", "orders", "--force", "--home", two.east).code == 2
    assert run("group", "status", "none", "--home", two.east).code == 16
    broken = two.text + GROUP.replace('primary = "east"', 'primry = "east"')
    file.write_text(broken)
    wrong = run(*deploy, "--yes")
    assert wrong.code == 10 and f"{file}:12: groups.orders.primry: unknown key; did you mean" in wrong.err
    assert (two.east / "deployed.toml").read_text() == two.text + GROUP


def test_a_node_that_is_away_stops_a_deployment_before_it_changes_anything(
    run, two: Two, tmp_path: Path
) -> None:
    file = tmp_path / "castling.toml"
    file.write_text((two.text + GROUP).replace(str(two.ports[2]), str(free_port())))
    before = [(home / "deployed.toml").exists() for home in (two.east, two.west)]
    answer = run("deploy", "--config", file, "--home", two.east, "--yes", "--json")
    assert answer.code == 14 and "west" in answer.error["message"]
    assert [(home / "deployed.toml").exists() for home in (two.east, two.west)] == before


def test_one_agent_per_home(two: Two) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "castling.cli.main", "agent", "--home", str(two.east)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 17 and "error[already-running]" in done.stderr


def test_diagnose_has_no_secret(run, two: Two, tmp_path: Path) -> None:
    import tarfile

    done = run("diagnose", "--home", two.east, "--output", tmp_path / "d.tar.gz", "--json").data
    assert undocumented("diagnose", done) == []
    with tarfile.open(tmp_path / "d.tar.gz") as tar:
        content = b"".join(
            found.read() for each in tar.getmembers() if (found := tar.extractfile(each)) is not None
        )
    token = (two.east / "admin.token").read_text().strip().split("_", 2)[2]
    assert b"castling" in content
    assert token.encode() not in content and b"PRIVATE KEY" not in content


def test_a_command_that_is_interrupted_says_130(two: Two) -> None:
    watch = subprocess.Popen(
        [sys.executable, "-m", "castling.cli.main", "group", "watch", "--home", str(two.east), "--json"],
        stdout=subprocess.PIPE,
    )
    assert watch.stdout is not None
    assert json.loads(watch.stdout.readline())["ok"] is True
    watch.send_signal(signal.SIGINT)
    watch.stdout.close()
    assert watch.wait(20) == 130


# --- how it looks -----------------------------------------------------------------------------


def tree(**stream: Any) -> dict[str, Any]:
    return {
        "group": "orders",
        "kind": "postgres",
        "primary": "east",
        "backups": ["west"],
        "node": "east",
        "streams": [
            {
                "backup": "west",
                "state": "running",
                "link": "up",
                "mode": "async",
                "positions": {
                    "captured": "1/123456",
                    "hardened": "1/123456",
                    "applied": "1/123400",
                    "released": None,
                },
                "rpo_s": 0.1,
                "rpo": None,
                "apply_lag_s": 0.4,
                "apply_lag": None,
                "seed": None,
                "ends": {"source": {}, "receive": {}, "apply": {}},
                **stream,
            }
        ],
    }


def test_the_table_fits_80_columns_and_tells_unknown() -> None:
    lines = table([tree()]).splitlines()
    assert lines[0].split() == list(HEAD)
    assert max(len(line) for line in lines) <= 80
    assert "0.4s" in lines[1]
    assert "unknown" in table([tree(apply_lag_s=None)])
    assert seconds_text(None) == "unknown" and seconds_text(0.0) == "0.0s"


def test_errors_are_shown_with_their_hints() -> None:
    error = {"code": "continuity-lost", "message": "the slot is gone", "hint": "seed anew"}
    told = details(tree(state="failed", ends={"source": {"error": error}, "receive": {}, "apply": {}}))
    assert "error[continuity-lost]: the slot is gone" in told and "hint: seed anew" in told


def test_the_first_copy_has_a_bar() -> None:
    seed = {
        "phase": "data",
        "rows": 500,
        "rows_total": 1000,
        "bytes": 1 << 20,
        "bytes_total": 2 << 20,
        "tables_done": 1,
        "tables_total": 3,
        "eta_s": 12.0,
    }
    told = details(tree(state="seeding", seed=seed))
    assert "50%" in told and "500 rows" in told and "table 1 of 3" in told and "12.0s left" in told
    assert "attempt" not in told
    again = seed | {"attempts": 3, "rows_kept": 400, "rows_renewed": 7}
    told = details(tree(state="seeding", seed=again))
    assert "attempt 3: 400 rows kept, 7 read once more" in told


def test_what_is_carried_beside_rows_has_a_line() -> None:
    told = details(tree(beside={"sequences": {"carried": 7, "as_of_s": 0.4}, "x": {"carried": 0}}))
    assert "sequences to west: 7 carried, 0.4s old" in told
    assert "x to west" not in told
    assert "sequences to west: unknown carried, unknown old" in details(tree(beside={"sequences": {}}))


def test_definitions_that_differ_are_named_with_the_command_that_shows_them() -> None:
    told = details(tree(definitions={"differ": ["role r"], "as_of_ns": 1}))
    assert "west: not as on the source: role r" in told
    assert "castling group compare-schema orders" in told
    assert "as on the source" not in details(tree(definitions={"differ": [], "as_of_ns": 1}))


def test_lanes_are_told_where_there_are_several() -> None:
    lanes = [{"lane": 0, "tables": 3, "busy": True}, {"lane": 1, "tables": 2, "busy": False}]
    apply = {"target": {"lanes": lanes}}
    told = details(tree(ends={"source": {}, "receive": {}, "apply": apply}))
    assert "lanes on west: 2, 1 busy; tables: 3, 2" in told
    assert "lanes" not in details(tree())


def test_a_copy_of_one_table_has_a_bar() -> None:
    hold = {"part": "public.a", "state": "copying", "age_s": 4.0, "pinned_bytes": 2048}
    copy = {"part": "public.a", "rows": 70, "bytes": 512, "bytes_total": 1024}
    told = details(tree(holds=[{**hold, "copy": copy}]))
    assert "public.a on west: copying for 4.0s, keeps 2.0 KiB of the journal, [" in told
    assert "]  50%  70 rows, 512 B" in told
    assert details(tree(holds=[{**hold, "copy": None}])).endswith("of the journal")


def test_what_is_left_behind_is_listed() -> None:
    assert "west: not in the log, so not carried: public.u" in details(tree(left_behind=["public.u"]))
    assert "not carried" not in details(tree(left_behind=None))


def test_a_call_imports_no_more_than_it_needs_and_every_command_is_found_by_its_word() -> None:
    """Imports are most of the time that a command takes."""
    words = {info.name for info in [*build().registered_commands, *build().registered_groups]}
    assert len(words) > 10
    for word in words:
        alone = build(word)
        assert word in {info.name for info in [*alone.registered_commands, *alone.registered_groups]}
    asked = "import sys, castling.cli.main as m; m.main(['group', '--help']); print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", asked], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "castling.cli.group" in loaded
    assert {"castling.control.agent", "castling.cli.demo", "psycopg"}.isdisjoint(loaded)
