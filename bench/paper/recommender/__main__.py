"""What is not a study: rows to a file, and all results in one picture.

python -m bench.paper.recommender generate FILE --rows 5000000
python -m bench.paper.recommender draw results.json FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

from bench.paper import rows
from bench.paper.options import Parser
from bench.paper.recommender import generated, picture
from dfa_kernels.training import InputError


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m bench.paper.recommender")
    commands = parser.add_subparsers(dest="command", required=True)
    generate = commands.add_parser("generate", help="rows in Criteo's format")
    generate.add_argument("file", type=Path)
    generate.add_argument("--rows", type=int, default=5_000_000)
    generate.add_argument("--seed", type=int, default=0)
    draw = commands.add_parser("draw", help="methods.png: every model by every method")
    draw.add_argument("json", type=Path)
    draw.add_argument("folder", type=Path)
    asked = parser.parse_args(arguments)
    try:
        if asked.command == "draw":
            print(picture.draw_methods(asked.folder / "methods.png", rows.read(asked.json)))
        else:
            generated.write(asked.file, asked.rows, asked.seed)
    except (InputError, OSError) as bad:
        print(f"bench.paper.recommender {asked.command}: {bad}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
