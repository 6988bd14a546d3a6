"""An endpoint over Ray Serve in the session's cluster, its model, and clients that keep asking it."""

import base64
import json
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from served_model import export_model, picture
from tokendial.results import ExampleAnswers, write_examples
from tokendial.serve.application import Endpoint
from tokendial.serve.keep import Keeper
from tokendial.serve.options import serve_settings
from tokendial.serve.source import Source, locate

SMALL = ["port=0", "engine.slots=8", "engine.threads=1", "replicas.cpus=0.4", "start_timeout_s=120"]


def model_folder(parent: Path, seed: int = 0) -> Path:
    """An exported model in a folder of its own, as a run has it."""
    return export_model(parent / f"seed{seed}" / "model", seed)


def write_golden(folder: Path, url: str, count: int = 16, model: str = "digits") -> None:
    """Record what an endpoint answers now as what training's evaluation answered."""
    examples = []
    for number in range(6):
        image = picture(number)
        text = asked(url, image, f"{model}@{count}")["choices"][0]["message"]["content"]
        examples.append(ExampleAnswers(image, "what is a1", text, {count: text}, {count: 1.0}))
    (folder.parent / "tracking").mkdir(exist_ok=True)
    write_examples(folder.parent / "tracking" / "examples.json", examples)


@contextmanager
def kept(folder: Path, *overrides: str, keys: str | None = None) -> Iterator[tuple[Keeper, str, list[str]]]:
    """An open endpoint on a model folder: its keeper, its address, and what was said."""
    said: list[str] = []
    endpoint = Endpoint(serve_settings([*SMALL, *overrides]), keys, ours=False)
    keeper = Keeper(endpoint, None, said.append)
    try:
        keeper.open(source_of(folder))
        yield keeper, endpoint.url, said
    finally:
        keeper.close()


def source_of(folder: Path) -> Source:
    return locate(str(folder), "", None)[0]


def body(image: bytes, model: str = "digits", question: str = "what is a1", **fields: Any) -> dict[str, Any]:
    url = f"data:image/png;base64,{base64.b64encode(image).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
    return {"model": model, "messages": [{"role": "user", "content": content}], **fields}


def asked(url: str, image: bytes, model: str = "digits", **fields: Any) -> dict[str, Any]:
    status, answer = posted(url, body(image, model, max_tokens=4, **fields))
    assert status == 200, answer
    return json.loads(answer)


def posted(url: str, document: Mapping[str, Any] | bytes, timeout_s: float = 60) -> tuple[int, bytes]:
    content = document if isinstance(document, bytes) else json.dumps(document).encode()
    request = urllib.request.Request(f"{url}/v1/chat/completions", content, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


class Traffic:
    """Clients that ask without pause; `seen` counts statuses and broken connections, `versions` who answered."""

    def __init__(self, url: str, clients: int = 2) -> None:
        self._url = url
        self._stop = threading.Event()
        self.seen: Counter[int | str] = Counter()
        self.versions: Counter[str] = Counter()
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(clients)]

    def _ask(self, number: int) -> None:
        while not self._stop.is_set():
            try:
                status, answer = posted(self._url, body(picture(number), "digits@4", max_tokens=4))
            except OSError as error:
                self.seen[type(error).__name__] += 1
                continue
            self.seen[status] += 1
            if status == 200:
                self.versions[json.loads(answer)["system_fingerprint"].partition("@")[0]] += 1
            time.sleep(0.02)

    def __enter__(self) -> "Traffic":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
