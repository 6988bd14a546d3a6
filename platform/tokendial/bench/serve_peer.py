"""The peer of `tokendial bench serve`: the same engine and the same application under plain uvicorn, one process.

python -m tokendial.bench.serve_peer FOLDER PORT SETTINGS
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import uvicorn

from tokendial import environment
from tokendial.model_folder import read_card
from tokendial.serve.backend import EngineBackend
from tokendial.serve.engine import Engine
from tokendial.serve.ingress import Options, create_app
from tokendial.serve.settings import EngineSettings


async def serve(folder: Path, port: int, settings: EngineSettings) -> None:
    """Serve until the process is ended."""
    card = read_card(folder)
    engine = Engine.load(folder, settings)
    await engine.calibrate()
    app = create_app(EngineBackend(engine, card.workload, card.run, card.metric, 0), Options())
    await uvicorn.Server(uvicorn.Config(app, port=port, log_level="critical", access_log=False)).serve()


if __name__ == "__main__":
    environment.apply()
    asyncio.run(serve(Path(sys.argv[1]), int(sys.argv[2]), EngineSettings.model_validate_json(sys.argv[3])))
