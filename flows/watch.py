"""Take in the raw data that others put under an S3 prefix, and reproduce what it touches.

An upload is a folder `<incoming>/<dataset>/<upload>/`, its `manifest.json` written last. What is good goes to
`data/raw/<dataset>/`, what is not to `<incoming>-quarantine/<dataset>/<upload>/` with the reasons. Uploads are taken
as hostile; the good files of a done upload stay where they are.

    python -m flows.watch [--incoming s3://team/incoming] [--once] [--dry-run]
    python -m flows.watch manifest FOLDER --dataset ID        what an uploader runs first
"""

from __future__ import annotations

import sys

if __name__ == "__main__":  # the command runs stages in a process of their own, and needs no Prefect here
    from flows.incoming import lookout

    sys.exit(lookout.main())

from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_table_artifact

from flows.incoming import lookout
from flows.incoming.intake import Outcome, Settings

NAME = "watch"


@flow(name=NAME, persist_result=False)
def watch(
    incoming: str | None = None,
    jobs: int = 2,
    root: str | None = None,
    quarantine: str | None = None,
    settle: float = 600.0,
    report_after: float = 24.0,
    patience: float = 3600.0,
    nodes: bool = False,
) -> list[dict[str, str]]:
    """Take in what lies in `incoming` (default: UNFORGE_INCOMING) and reproduce what it touches.

    `settle` (until a listed file is missing) and `patience` (until another watch's claim is dead) in seconds,
    `report_after` (until an upload without manifest is reported) in hours; `nodes` as in `reproduce`. Gives a row
    for each upload. Raises when one could not be looked at or a stage failed; what was taken stays taken.
    """
    from flows.reproduce import reproduce

    here = Path(root or Path.cwd()).resolve()
    log = get_run_logger()

    def run(stages: list[str]) -> list[str]:
        state: Any = reproduce(targets=stages, jobs=jobs, nodes=nodes, root=str(here), return_state=True)
        report = state.result(raise_on_failure=False)
        if isinstance(report, ValueError):
            raise report
        if not isinstance(report, dict):
            return [f"the run of reproduce ended {state.name}: {state.message}"]
        return [f"{stage}: {why}" for stage, why in sorted(report["failed"].items())]

    settings = Settings(root=here, settle=settle, report_after=report_after * 3600, patience=patience)
    outcomes, failed = lookout.once(settings, incoming, quarantine, run, log.info)
    rows = [_row(outcome) for outcome in outcomes]
    create_table_artifact(key=NAME, table=rows or [{"upload": "none"}], description=lookout.counts(outcomes))
    if failed:
        raise RuntimeError("\n".join(failed))
    return rows


def _row(outcome: Outcome) -> dict[str, str]:
    """A line of the table artifact."""
    files = {"files": str(outcome.taken), "there": str(outcome.there), "quarantined": str(len(outcome.refused))}
    return {"upload": outcome.upload, "state": outcome.state, **files, "what": str(outcome)}
