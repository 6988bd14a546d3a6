"""Golden prompts of a registered version: the examples × counts table that its run logged, read back."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

from mlflow.artifacts import download_artifacts

from tokendial.results import ExampleAnswers
from tokendial.tracking.registry import resolve
from tokendial.tracking.server import AWAY, connect, logger, patient, probe, reason

TABLE = "tables/examples.json"


def golden_examples(uri: str, reference: str) -> list[ExampleAnswers]:
    """The examples of a version's run, `NAME/7`; none where it has no run, no table, or the server is away."""
    version = resolve(uri, reference)
    if version.run_id is None:
        return []
    try:
        probe(uri)
        if TABLE not in {file.path for file in connect(uri).list_artifacts(version.run_id, "tables")}:
            return []
        with patient(), TemporaryDirectory() as folder:
            at = download_artifacts(run_id=version.run_id, artifact_path="tables", dst_path=folder, tracking_uri=uri)
            return _read(Path(at))
    except AWAY as error:
        logger.warning("golden prompts of %s are not to be had: %s", reference, reason(error, uri))
        return []


def _read(folder: Path) -> list[ExampleAnswers]:
    table = json.loads((folder / "examples.json").read_text("utf-8"))
    counts = [int(column.removesuffix(" tokens")) for column in table["columns"][3:]]
    examples = []
    for image, question, target, *cells in table["data"]:
        told = {count: cell for count, cell in zip(counts, cells, strict=True) if cell}
        examples.append(
            ExampleAnswers(
                image_png=(folder.parent / image["filepath"]).read_bytes(),
                question=question,
                target=target,
                answers={count: cell[2:] for count, cell in told.items()},
                quality={count: float(cell.startswith("✓")) for count, cell in told.items()},
            )
        )
    return examples
