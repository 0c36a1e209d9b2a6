"""python -m data list | fetch | verify: the paper's data sets without a trainer."""

from __future__ import annotations

import argparse
import sys

from data.sources import COMMIT, LICENCE, REPOSITORY, SOURCES, locate, obtain


def main(argv: list[str] | None = None) -> int:
    """Exit code 2 and one line for what cannot be done."""
    try:
        run(argv)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def run(argv: list[str] | None) -> None:
    parser = argparse.ArgumentParser(prog="python -m data", description=__doc__)
    parser.add_argument("action", choices=["list", "fetch", "verify"], help="fetch downloads what is missing")
    parser.add_argument("names", nargs="*", metavar="NAME", help="data sets; default: all")
    parser.add_argument("--data-dir", "--data_dir", help="a folder that holds the files already [$GRPO_DATA_DIR]")
    args = parser.parse_args(argv)
    if unknown := set(args.names) - SOURCES.keys():
        raise ValueError(f"there is no data set {unknown.pop()!r}; known: {', '.join(SOURCES)}")
    if args.action == "list":
        print(f"from github.com/{REPOSITORY} at {COMMIT[:12]}, licence {LICENCE}")
    failures = []
    for source in (SOURCES[name] for name in args.names or SOURCES):  # all of them, also after a failure
        found = locate(source, args.data_dir)
        if args.action == "list":
            size = f"{source.rows:5} rows {source.size / 1000:8.1f} kB"
            print(f"{source.name:14} {source.use:5} {size}  {source.about:42} {found or 'not here yet'}")
            print(f"{'':14} {source.path}  sha256 {source.sha256}")
        elif args.action == "verify" and found is None:
            failures.append(f"{source.name} is not here; get it by: python -m data fetch {source.name}")
        else:
            try:
                print(f"ok    {source.name:14} {obtain(source, args.data_dir)}")
            except ValueError as error:
                failures.append(str(error))
    if failures:
        raise ValueError("\nerror: ".join(failures))


if __name__ == "__main__":
    sys.exit(main())
