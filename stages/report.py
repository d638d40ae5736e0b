"""Write the report of a profile: `python stages/report.py --profile small`."""

from __future__ import annotations

import argparse
import sys

from unforge import profiles, report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", help="default: that of params.yaml")
    arguments = parser.parse_args()
    try:
        report.write(profiles.load(arguments.profile).name)
    except (ValueError, OSError) as error:
        sys.exit(f"report: {error}")


if __name__ == "__main__":
    main()
