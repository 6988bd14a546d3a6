"""Keeping an endpoint: start it, follow its alias, and let a new version take traffic only once it has proved itself.

A version is started beside the one that serves, asked golden prompts, held against its recorded curve, and only then
given new requests; the old one finishes its answers and ends. A version that raises, hangs in its start or answers
otherwise than recorded is refused and never gets a request. Every change is logged with who made it.
"""

from __future__ import annotations

import asyncio
import json
import time
from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

from tokendial import runs
from tokendial.experiments import ConfigError
from tokendial.failures import ClusterAway, WorkFailed
from tokendial.identity import user_name
from tokendial.results import ExampleAnswers, read_examples
from tokendial.serve.backend import Served, Whole
from tokendial.serve.golden import Finding, examine
from tokendial.serve.replica import Refusal
from tokendial.serve.request import ServeRequest
from tokendial.serve.source import Followed, Source, registered

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentResponseGenerator

    from tokendial.serve.application import Endpoint, Running

CHANGES = "changes.jsonl"
SHOWN, SHOWN_BYTES = 6, 200_000
Say = Callable[[str], None]


@dataclass(frozen=True)
class Change:
    """A version that took traffic, or was refused before it had any."""

    time: float
    model: str
    version: str
    before: str | None
    outcome: str
    by: str
    reason: str
    findings: tuple[str, ...] = ()


class Keeper:
    """An open endpoint and the version that serves on it."""

    def __init__(self, endpoint: Endpoint, followed: Followed | None, say: Say) -> None:
        self._endpoint, self._followed, self._say = endpoint, followed, say
        self._running: Running | None = None
        self._refused: set[Source] = set()
        self._told = ""
        self._left: list[Callable[[], None]] = []

    def open(self, source: Source) -> Served:
        """Serve the first version; raises WorkFailed where it does not prove itself."""
        user = user_name()
        self._endpoint.open(f"{user}, for {source.name} {source.version}")
        return self.change(source, user, "the endpoint was started")

    def change(self, source: Source, by: str, reason: str) -> Served:
        """Serve another version, or keep the one that serves and raise WorkFailed."""
        before = self._running
        try:
            # Raises WorkFailed where the registry is away, and the next look tries again.
            examples = examples_of(source)
        except ConfigError as error:
            raise self._refused_for(error, source, by, reason) from error
        started: Running | None = None
        told = False
        try:
            started = self._endpoint.start(source, shown(examples))
            served, findings = _proved(started, examples, self._endpoint.settings.start_timeout_s)
            told = True
            self._endpoint.switch(started)
        except Exception as error:
            if started is not None:
                self._undo(started, before, told)
            if not isinstance(error, WorkFailed) or isinstance(error, ClusterAway):
                raise
            raise self._refused_for(error, source, by, reason) from error
        self._running = started
        self._left = [partial(self._endpoint.drop_others, started)]
        if before is not None:
            self._endpoint.count("promoted")
        self._log(source, before, "promoted", by, reason, findings)
        self._clear()
        return served

    def look(self) -> None:
        """Follow the alias to where it points now; a version that was refused is not tried again."""
        told = ""
        try:
            self._look()
        except (WorkFailed, ValueError) as error:
            # The registry is away, or the version is bad: what serves goes on serving.
            told = str(error)
        # So it does where Ray is away, or slow; the next look tries again.
        except Exception as error:
            told = f"the alias could not be followed: {type(error).__name__}: {error}"
        # What lasts is told once.
        if told and told != self._told:
            self._say(told)
        self._told = told

    def _look(self) -> None:
        assert self._running is not None
        if not self._clear() or self._followed is None:
            return
        from tokendial.tracking.registry import CHAMPION, history, resolve

        follow = self._followed
        found = resolve(follow.uri, f"{follow.name}@{follow.alias}")
        source = registered(follow.uri, found, self._running.source.name)
        if source == self._running.source or source in self._refused:
            return
        moved = history(follow.uri, follow.name) if follow.alias == CHAMPION else []
        moves = [move for move in moved if move.version == found.version]
        by, reason = (moves[-1].by, moves[-1].reason) if moves else ("unknown", "the alias was moved")
        self.change(source, by, reason)

    def close(self) -> None:
        """End what was opened."""
        self._endpoint.close()

    def _undo(self, started: Running, before: Running | None, told: bool) -> None:
        """End a version that does not serve; endpoint processes that were told of it are sent back first."""
        if told:
            if before is None:
                # Whoever was told has nowhere else to go; the next start that succeeds drops it.
                return
            self._left.append(partial(self._endpoint.switch, before))
        self._left.append(partial(self._endpoint.drop, started))
        self._clear()

    def _clear(self) -> bool:
        """Do in turn what is left to do of changes, and tell whether all of it is done; else the next look goes on."""
        try:
            while self._left:
                self._left[0]()
                del self._left[0]
        # Ray is away, or slow.
        except Exception as error:
            self._say(f"a change of version could not be cleared up: {type(error).__name__}: {error}")
        return not self._left

    def _refused_for(self, error: Exception, source: Source, by: str, reason: str) -> WorkFailed:
        """Write down that a version is refused and not tried again; what to raise."""
        self._refused.add(source)
        if self._running is not None:
            self._endpoint.count("refused")
        self._log(source, self._running, "refused", by, f"{reason}: {error}", ())
        return WorkFailed(f"version {source.version} of {source.name} was refused: {error}")

    def _log(
        self, source: Source, before: Running | None, outcome: str, by: str, reason: str, findings: Sequence[Finding]
    ) -> None:
        told = tuple(map(str, findings))
        was = before.source.version if before else None
        change = Change(time.time(), source.name, source.version, was, outcome, by, reason, told)
        path = runs.home() / "served" / CHANGES
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as log:
            log.write(json.dumps(change.__dict__, ensure_ascii=False) + "\n")
        self._say(f"{source.name} {source.version}: {outcome} by {by} ({reason})")
        for line in told:
            self._say(f"  {line}")


def keep(keeper: Keeper, every_s: float) -> NoReturn:
    """Follow until interrupted."""
    while True:
        time.sleep(every_s)
        keeper.look()


def examples_of(source: Source) -> list[ExampleAnswers]:
    """The fixed examples that training's evaluation answered, with its answers; none where no run left them."""
    if source.folder is not None:
        path = Path(source.folder).parent / "tracking" / "examples.json"
        return read_examples(path) if path.is_file() else []
    from tokendial.tracking.golden import golden_examples

    assert source.uri is not None
    assert source.registered is not None
    return golden_examples(source.uri, source.registered)


def shown(examples: Sequence[ExampleAnswers]) -> list[dict[str, str]]:
    """The first examples as the page shows them; large images are left out."""
    chosen = [each for each in examples if len(each.image_png) <= SHOWN_BYTES][:SHOWN]
    head = "data:image/png;base64,"
    return [{"image": head + b64encode(each.image_png).decode(), "question": each.question} for each in chosen]


def _proved(started: Running, examples: Sequence[ExampleAnswers], most_s: float) -> tuple[Served, Sequence[Finding]]:
    """What a started version is, once every golden answer was looked at; raises WorkFailed."""

    async def answer(request: ServeRequest) -> Whole:
        call = started.handle.options(method_name="answers", stream=True).remote([request])
        [[(_, outcome)]] = [outcomes async for outcomes in cast("DeploymentResponseGenerator[Any]", call)]
        if isinstance(outcome, Exception):
            raise outcome
        if isinstance(outcome, Refusal):
            if outcome.kind == "busy":
                raise outcome.error()
            raise WorkFailed(f"it refuses a golden prompt: {outcome.message}")
        return outcome

    async def prove() -> tuple[Served, Sequence[Finding]]:
        async with asyncio.timeout(most_s):
            served: Served = await started.handle.served.remote()
            return served, await examine(answer, examples, served.rungs, served.answer_tokens)

    try:
        served, findings = asyncio.run(prove())
    except TimeoutError:
        raise WorkFailed(f"its golden answers took longer than {most_s:g} s") from None
    except WorkFailed:
        raise
    # Whatever else it raises, or dies of, while it is asked: that version's fault, and not the endpoint's end.
    except Exception as error:
        raise WorkFailed(f"it fails at a golden prompt: {str(error).strip() or type(error).__name__}") from error
    for finding in findings:
        if not finding.passed:
            raise WorkFailed(f"it does not answer as recorded: {finding}")
    return served, findings
