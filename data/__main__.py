"""python -m data list | fetch | verify: the paper's data sets without a trainer."""

from __future__ import annotations

import argparse
import sys

from data.sources import COMMIT, LICENCE, REPOSITORY, SOURCES, find_source, locate, obtain


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m data", description=__doc__)
    parser.add_argument("what", choices=["list", "fetch", "verify"])
    parser.add_argument("names", nargs="*", metavar="NAME", help="data sets; all of them when none is named")
    parser.add_argument(
        "--data-dir", "--data_dir", help="a folder that holds the files already (default: $GRPO_DATA_DIR)"
    )
    args = parser.parse_args(argv)
    try:
        sources = [find_source(name) for name in args.names] or list(SOURCES.values())
        if args.what == "list":
            list_sources(sources, args.data_dir)
            return 0
        return check(sources, args.data_dir, fetch=args.what == "fetch")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def list_sources(sources, data_dir) -> None:
    print(f"from github.com/{REPOSITORY} at {COMMIT[:12]}, licence {LICENCE}")
    for source in sources:
        found = locate(source, data_dir)
        print(
            f"{source.name:14} {source.use:5} {source.rows:5} rows {source.size / 1000:8.1f} kB  {source.about:42} "
            f"{found or 'not here yet'}"
        )
        print(f"{'':14} {source.path}  sha256 {source.sha256}")


def check(sources, data_dir, *, fetch: bool) -> int:
    """One line a file; goes on after a failure, so that one run tells everything. Exit code 0 or 2."""
    failures = 0
    for source in sources:
        try:
            if not fetch and locate(source, data_dir) is None:
                raise ValueError(f"{source.name}: not here; get it by: python -m data fetch {source.name}")
            print(f"ok    {source.name:14} {obtain(source.name, data_dir)}")
        except (ValueError, OSError) as error:
            failures += 1
            print(f"error: {error}", file=sys.stderr)
    return 2 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
