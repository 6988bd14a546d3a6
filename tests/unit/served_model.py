"""A small exported model with random weights, which chatters at length, and requests to an engine that serves it."""

import asyncio
import io
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tokendial.contracts import RunConfig
from tokendial.curve import CurvePoint
from tokendial.model_folder import ModelCard, write_cards
from tokendial.resolve import resolve
from tokendial.serve.engine import Engine
from tokendial.serve.request import Ask, Chunk, Done, Sampling, ServeRequest, Turn
from tokendial.serve.settings import EngineSettings
from tokendial_workloads.digits.task import DigitsTask
from tokendial_workloads.images import decode_image
from tokendial_workloads.vlm.export import load, load_processor

QUALITY = {1: 0.2, 4: 0.5, 16: 0.9, 36: 0.85, 144: 0.95}
COUNTS = tuple(QUALITY)
TEXTS = ("what is b3", "how many 7", "where is 4", "what is d1 what is a2", "odd")


def export_model(folder: Path, seed: int = 0) -> Path:
    """A digits model of random weights, of run `tiny0` etc., with a made-up curve over counts 1, 4, 16, 36 and 144."""
    config = resolve("digits.tiny", [f"seed={seed}"], machine_cpus=None)
    task = DigitsTask()
    task.export(task.build_model(config).eval(), config, str(folder))
    points = {count: CurvePoint(quality, (quality, quality), 100) for count, quality in QUALITY.items()}
    write_cards(folder, _card(config, f"tiny{seed}"), points, {count: 1e6 * count for count in COUNTS})
    return folder


def _card(config: RunConfig[Any], run: str) -> ModelCard:
    return ModelCard(
        workload="digits",
        run=run,
        metric="accuracy",
        split="test",
        trained_counts=config.schedule.counts,
        evaluated_counts=COUNTS,
        projector=config.model.projector,
        schedule={},
        commit="none",
        autc=0.5,
        data_digests={},
        config=config.model_dump(mode="json"),
        versions={},
    )


def picture(seed: int = 0, side: int = 48) -> bytes:
    """A PNG of noise."""
    pixels = np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def question(
    text: str = "what is b3",
    count: int | None = None,
    image: int = 0,
    new_tokens: int = 12,
    sampling: Sampling | None = None,
    **terms: Any,
) -> ServeRequest:
    """One question about one picture; without a count it is left to the engine."""
    return ServeRequest(
        id=f"{text}/{image}/{count}",
        turns=(Turn("user", (0, text)),),
        images=(picture(image),),
        asks=(Ask(count),),
        sampling=sampling or Sampling(new_tokens),
        **terms,
    )


def offline_answers(folder: Path) -> Callable[[ServeRequest], str]:
    """What `generate` of an exported folder answers to one request alone, its images all at one count."""
    model: Any = load(folder)
    processor = load_processor(folder)

    def answer(request: ServeRequest) -> str:
        told = [
            {
                "role": turn.role,
                "content": [
                    {"type": "image"} if isinstance(part, int) else {"type": "text", "text": part}
                    for part in turn.parts
                ],
            }
            for turn in request.turns
        ]
        prompt = processor.apply_chat_template(told, add_generation_prompt=True)
        images = [decode_image(content) for content in request.images]
        count = request.asks[0].count or max(COUNTS)
        inputs = processor(images=images, text=prompt, visual_tokens=count, add_special_tokens=False)
        ids = model.generate(**inputs, max_new_tokens=request.sampling.max_new_tokens, do_sample=False)
        return processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    return answer


async def answered(engine: Engine, request: ServeRequest) -> tuple[str, Done]:
    """The whole answer, and how it went."""
    text = ""
    async for item in engine.generate(request):
        if isinstance(item, Done):
            return text, item
        assert isinstance(item, Chunk)
        text += item.text
    raise AssertionError("the answer never ended")


@asynccontextmanager
async def engine_of(folder: Path, **settings: Any) -> AsyncIterator[Engine]:
    """An engine on one thread."""
    engine = Engine.load(folder, EngineSettings(**{"threads": 1, "governor": "off", **settings}))
    try:
        yield engine
    finally:
        await engine.close()


def run(folder: Path, use: Callable[[Engine], Coroutine[Any, Any, Any]], **settings: Any) -> Any:
    """What a coroutine makes of an engine."""

    async def main() -> Any:
        async with engine_of(folder, **settings) as engine:
            return await asyncio.wait_for(use(engine), timeout=60)

    return asyncio.run(main())


async def all_answers(engine: Engine, requests: Sequence[ServeRequest]) -> list[tuple[str, Done]]:
    """Answers to requests that are sent at once."""
    return list(await asyncio.gather(*(answered(engine, request) for request in requests)))
