"""python -m data list | fetch | verify: the paper's data sets without a trainer."""

from __future__ import annotations

import argparse
import sys

from data import command
from data.sources import COMMIT, LICENCE, REPOSITORY, SOURCES, find_source, locate, obtain


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m data", description=__doc__)
    parser.add_argument("what", choices=["list", "fetch", "verify"])
    parser.add_argument("names", nargs="*", metavar="NAME", help="data sets; all of them when none is named")
    parser.add_argument("--data-dir", "--data_dir", help="a folder that holds the files already [$GRPO_DATA_DIR]")
    args = parser.parse_args(argv)
    sources, failures = [find_source(name) for name in args.names] or list(SOURCES.values()), []
    if args.what == "list":
        print(f"from github.com/{REPOSITORY} at {COMMIT[:12]}, licence {LICENCE}")
    for source in sources:  # goes on after a failure, so that one run tells everything
        found = locate(source, args.data_dir)
        about = f"{source.name:14} {source.use:5} {source.rows:5} rows {source.size / 1000:8.1f} kB  {source.about:42}"
        if args.what == "list":
            print(f"{about} {found or 'not here yet'}\n{'':14} {source.path}  sha256 {source.sha256}")
        elif args.what == "verify" and found is None:
            failures.append(f"{source.name}: not here; get it by: python -m data fetch {source.name}")
        else:
            try:
                print(f"ok    {source.name:14} {obtain(source.name, args.data_dir)}")
            except ValueError as error:
                failures.append(str(error))
    if failures:
        raise ValueError("\nerror: ".join(failures))


if __name__ == "__main__":
    sys.exit(main())
