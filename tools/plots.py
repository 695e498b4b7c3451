"""Draw the pictures of docs/performance.md, and write their tables, from a benchmark's JSON.

    python benchmarks/run.py --json --only accesses --only kvm \\
        --only restore_curve --only clones_alive > bench.json
    python tools/plots.py bench.json -o docs/images --page docs/performance.md

OUT gets one SVG for each picture and a copy of the JSON, bench.json. In the page, what stands between
`<!-- plots: NAME -->` and `<!-- plots: end -->` is written anew. Needs matplotlib (the group `docs`).
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from plots_data import FIGURES, BadReport, Report, provenance_text, read

_MARK = "<!-- plots: {} -->"
_END = "<!-- plots: end -->"


def write_page(page: Path, report: Report, images: str) -> str:
    """The page's text with the blocks of every figure, and of `measured`, as `report` has them."""
    text = page.read_text(encoding="utf-8")
    blocks = {"measured": provenance_text(report)}
    for name, figure in FIGURES.items():
        data = figure(report)
        blocks[name] = f"![{data.alt()}]({images}/{name}.svg)\n\n{data.markdown()}"
    for name, block in blocks.items():
        pattern = re.compile(f"({re.escape(_MARK.format(name))}\n).*?({re.escape(_END)})", re.DOTALL)
        if not pattern.search(text):
            raise BadReport(f"{page} has no place for '{name}': write {_MARK.format(name)} and {_END} there")
        text = pattern.sub(lambda m, block=block: f"{m[1]}\n{block}\n\n{m[2]}", text)
    return text


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("json", type=Path, metavar="BENCH.json", help="what benchmarks/run.py --json printed")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="OUT", help="folder of the pictures"
    )
    parser.add_argument("--page", type=Path, help="the page whose tables are to be written")
    options = parser.parse_args(arguments)
    try:
        report = read(options.json)
        data = {name: figure(report) for name, figure in FIGURES.items()}
        page = write_page(options.page, report, options.output.name) if options.page else ""
        try:
            from plots_draw import save
        except ImportError as error:
            raise BadReport(f"it draws with matplotlib ({error}): pip install --group docs") from error
        options.output.mkdir(parents=True, exist_ok=True)
        for name, figure in data.items():
            save(figure, options.output / f"{name}.svg")
            print(options.output / f"{name}.svg")
        (options.output / "bench.json").write_text(report.text, encoding="utf-8", newline="\n")
        if options.page:
            options.page.write_text(page, encoding="utf-8", newline="\n")
    except (BadReport, OSError) as error:
        print(f"plots: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
