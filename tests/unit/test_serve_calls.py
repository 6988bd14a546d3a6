"""What is to run on the model's thread runs there once, or says why not; nobody waits for ever."""

import asyncio
import threading
from pathlib import Path

import pytest
from served_model import answered, export_model, question, run
from tokendial.failures import WorkFailed
from tokendial.serve.engine import Engine


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_model(tmp_path_factory.mktemp("served") / "model")


async def held(engine: Engine) -> tuple[asyncio.Task[bool], threading.Event]:
    """A call that keeps the model's thread until the event is set."""
    begun, go_on = threading.Event(), threading.Event()

    def hold() -> bool:
        begun.set()
        return go_on.wait(10)

    holding = asyncio.create_task(engine._on_thread(hold))
    while not begun.is_set():
        await asyncio.sleep(0.001)
    return holding, go_on


def test_a_call_that_waits_when_the_engine_is_closed_fails_and_so_does_one_after_it(folder: Path) -> None:
    async def use(engine: Engine) -> None:
        holding, go_on = await held(engine)
        waiting = asyncio.create_task(engine._on_thread(lambda: 1))
        await asyncio.sleep(0)
        closing = asyncio.create_task(engine.close())
        while engine.load_state().alive:
            await asyncio.sleep(0.001)
        go_on.set()
        assert await holding
        await closing
        for late in (waiting, engine._on_thread(lambda: 2)):
            with pytest.raises(WorkFailed, match="closed"):
                await asyncio.wait_for(late, 5)

    run(folder, use)


def test_a_call_that_is_given_up_does_not_run_and_the_engine_goes_on(folder: Path) -> None:
    async def use(engine: Engine) -> None:
        ran: list[int] = []
        holding, go_on = await held(engine)
        given_up = asyncio.create_task(engine._on_thread(lambda: ran.append(1)))
        await asyncio.sleep(0)
        given_up.cancel()
        await asyncio.wait({given_up})
        holding.cancel()
        await asyncio.wait({holding})
        go_on.set()
        assert (await answered(engine, question()))[0]
        assert (engine.load_state().alive, ran) == (True, [])

    run(folder, use)
