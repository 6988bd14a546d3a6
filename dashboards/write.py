"""Write the dashboards' JSON, which Grafana reads: `python dashboards/write.py [FOLDER]`, default beside this file."""

import json
import sys
from pathlib import Path

import search
import serving
import training
from grafana_foundation_sdk.cog.encoder import JSONEncoder

BOARDS = {"training": training.BOARD, "search": search.BOARD, "serving": serving.BOARD}


def main(folder: Path) -> None:
    for name, board in BOARDS.items():
        document = json.loads(JSONEncoder(sort_keys=True).encode(board.build()))
        (folder / f"{name}.json").write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
