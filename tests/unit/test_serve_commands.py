"""`tokendial keys` and `tokendial serve --help` as typed: what is printed, and with which status they end."""

import json
from pathlib import Path

import pytest
from tokendial.cli import app
from tokendial.serve.keys import key_store
from typer.testing import CliRunner, Result


def said(*words: str) -> Result:
    return CliRunner().invoke(app, words)


def test_a_key_is_shown_once_listed_and_revoked(home: Path) -> None:
    made = json.loads(said("keys", "add", "alice", "--rate", "5", "--may-bend", "--json").stdout.splitlines()[-1])
    found = key_store().find(made["key"])
    assert found is not None
    assert (found.name, found.rate_per_s, found.may_bend) == ("alice", 5, True)
    listed = said("keys", "list")
    assert "alice" in listed.stdout
    assert made["key"] not in listed.stdout
    assert said("keys", "revoke", "alice").exit_code == 0
    [row] = json.loads(said("keys", "list", "--json").stdout)
    assert row["revoked"] is not None
    assert key_store().find(made["key"]) is None


@pytest.mark.parametrize(
    "words",
    [
        ("keys", "add", "a b"), ("keys", "add", "a", "--rate", "0"), ("keys", "revoke", "nobody"),
        ("serve", "--model", "nothing"), ("serve", "prot=1"), ("serve", "host=0.0.0.0"), ("serve", "--on", "http://127.0.0.1:9"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_bad_input_is_one_sentence_and_status_two(home: Path, words: tuple[str, ...]) -> None:
    done = said(*words)
    assert done.exit_code == 2, done.output
    assert done.stderr.startswith("tokendial: ")
    assert done.stderr.count("\n") == 1


def test_the_help_lists_every_setting() -> None:
    done = said("serve", "--help")
    assert done.exit_code == 0
    for setting in ("engine.governor", "replicas.most", "max_body_mib", "trace_share"):
        assert setting in done.stdout
