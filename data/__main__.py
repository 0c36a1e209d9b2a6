"""python -m data list | fetch | verify: the paper's data sets without a trainer."""

from __future__ import annotations

import argparse
import sys

from data.sources import COMMIT, LICENCE, REPOSITORY, SOURCES, locate, obtain


def act(action: str, name: str, data_dir: str | None) -> str:
    """Lists, downloads or checks a data set. Returns the lines to print. ValueError with one line."""
    if name not in SOURCES:
        raise ValueError(f"there is no data set {name!r}; known: {', '.join(SOURCES)}")
    source = SOURCES[name]
    path = locate(source, data_dir)
    if action == "list":
        size = f"{source.rows:5} rows {source.size / 1000:8.1f} kB"
        first = f"{name:14} {source.use:5} {size}  {source.about:42} {path or 'not here yet'}"
        return f"{first}\n{'':14} {source.path}  sha256 {source.sha256}"
    if action == "verify" and path is None:
        raise ValueError(f"{name} is not here; get it by: python -m data fetch {name}")
    return f"ok    {name:14} {obtain(source, data_dir)}"


def main(argv: list[str] | None = None) -> int:
    """Exit code 2 and one line for each data set that fails, after the others."""
    parser = argparse.ArgumentParser(prog="python -m data", description=__doc__)
    parser.add_argument("action", choices=["list", "fetch", "verify"], help="fetch downloads what is missing")
    parser.add_argument("names", nargs="*", metavar="NAME", help="data sets; default: all")
    parser.add_argument("--data-dir", "--data_dir", help="a folder that holds the files already [$GRPO_DATA_DIR]")
    args = parser.parse_args(argv)
    if args.action == "list":
        print(f"from github.com/{REPOSITORY} at {COMMIT[:12]}, licence {LICENCE}")
    code = 0
    for name in args.names or SOURCES:
        try:
            print(act(args.action, name, args.data_dir))
        except (ValueError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            code = 2
    return code


if __name__ == "__main__":
    sys.exit(main())
