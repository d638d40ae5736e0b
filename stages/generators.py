"""How well the generators and their inverse decoders learnt: `python stages/generators.py llamagen,rar,var`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from unforge import generators, profiles

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", help="names, separated by commas")
    parser.add_argument("--profile", help="default: that of params.yaml")
    arguments = parser.parse_args()
    try:
        profile = profiles.load(arguments.profile)
        table = generators.build(profile, arguments.models.split(","))
        generators.write(table, Path("reports") / profile.name / "generators")
    except (ValueError, OSError) as error:
        sys.exit(f"generators: {error}")
