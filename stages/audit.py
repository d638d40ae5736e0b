"""What the papers' own tables violate: `python stages/audit.py`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from unforge import audit, profiles

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", help="default: that of params.yaml")
    arguments = parser.parse_args()
    try:
        profile = profiles.load(arguments.profile)
        audit.write(audit.audit(), Path("reports") / profile.name / "audit")
    except (ValueError, OSError) as error:
        sys.exit(f"audit: {error}")
