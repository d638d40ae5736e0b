"""Verdicts on every claim of the papers: `python stages/claims.py`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from unforge import claims, profiles

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", help="default: that of params.yaml")
    arguments = parser.parse_args()
    try:
        profile = profiles.load(arguments.profile)
        claims.write(claims.build(profile), Path("reports") / profile.name / "claims")
    except (ValueError, OSError) as error:
        sys.exit(f"claims: {error}")
