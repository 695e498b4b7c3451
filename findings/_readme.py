"""Writes the table of README.md from the scripts' headers: `python findings/_readme.py`."""

import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
FIELDS = ("Question", "Guess", "Really", "Version", "Date", "Meets")
MARK = "<!-- from here on: python findings/_readme.py -->\n"


def header(path):
    found, last = {}, None
    for line in path.read_text().splitlines()[1:]:
        if not line.startswith("# "):
            break
        match = re.match(r"# (\w+): (.*)", line)
        if match and match[1] in FIELDS:
            last = match[1]
            found[last] = match[2]
        elif last:
            found[last] += " " + line[1:].strip()
    missing = [name for name in FIELDS if name not in found]
    if missing:
        sys.exit(f"{path.name} has no {', '.join(missing)} in its header")
    return found


def row(path):
    facts = header(path)
    cells = (facts["Question"], facts["Really"], facts["Version"])
    return f"| [{path.stem}]({path.name}) | " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def main():
    scripts = sorted(path for path in HERE.glob("*.sh") if path.name[0] != "_" and path.name != "run-all.sh")
    readme = HERE / "README.md"
    text = readme.read_text().split(MARK)[0] + MARK
    text += f"\n{len(scripts)} findings.\n\n"
    text += "| finding | question | what really happens | seen with |\n|---|---|---|---|\n"
    readme.write_text(text + "\n".join(map(row, scripts)) + "\n")


if __name__ == "__main__":
    main()
