"""Draw the method, as the README shows it.

python -m tools.draw_method
"""

from __future__ import annotations

import argparse
from pathlib import Path

from deepmi import cli


def get_args_parser() -> argparse.ArgumentParser:
    """The command line of this tool."""
    parser = cli.new_parser(__doc__)
    parser.add_argument("--out", type=Path, default=Path("images/method.png"), metavar="FILE", help="target, .png")
    return parser


if __name__ == "__main__":
    ARGS = cli.parse(get_args_parser())  # before the heavy imports, so that --help answers at once

from deepmi import plots, storage


def main(args: argparse.Namespace) -> None:
    """Draw and write."""
    storage.prepare_folder(args.out.parent)
    plots.draw_method(args.out)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    cli.run(main, ARGS)
