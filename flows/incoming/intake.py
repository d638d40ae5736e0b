"""Look at the uploads in incoming: what is claimed, downloaded, examined, taken, put into quarantine or left.

Nothing is decided twice: the reasons are written down before a file is moved, and a file that is there already is
taken for the same. So a look that was killed anywhere is finished by the next one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from flows import walk
from flows.incoming import inbox, landing, uploads
from flows.incoming.inbox import Claim, Inbox, Item, LeftError, Upload
from unforge import s3

GENERATED = "generated"
AT_ONCE = 8
"""Files that are downloaded at a time."""

Say = Callable[[str], None]
Check = Callable[[Path], str]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a look goes by."""

    root: Path
    limits: uploads.Limits = field(default_factory=uploads.Limits)
    settle: float = 600.0
    """Seconds without a new object after which a file that the manifest lists is missing and no longer awaited."""
    report_after: float = 24 * 3600.0
    """Seconds after which an upload without manifest is reported as given up."""
    patience: float = 3600.0
    """Seconds after which another watch's claim is taken for dead."""
    dry_run: bool = False


@dataclass
class Outcome:
    """What became of one upload."""

    upload: str
    state: Literal["taken", "quarantined", "left"]
    text: str
    dataset: str = ""
    taken: int = 0
    """Files that are in `data/raw/` now and were not before."""
    there: int = 0
    """Files that were there already, with the same bytes."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Reason by file in quarantine."""
    error: bool = False
    """Left by a fault of the store or of this machine."""

    def __str__(self) -> str:
        counts = f", {self.taken} new files, {self.there} there already" if self.state == "taken" else ""
        bad = [f"  {uploads.shown(name)}: {reason}" for name, reason in sorted(self.refused.items())[:20]]
        more = [f"  and {len(self.refused) - 20} more (reason.json)"] if len(self.refused) > 20 else []
        return "\n".join([f"{self.upload}: {self.state}{counts}. {self.text}".rstrip(), *bad, *more])


def look(box: Inbox, settings: Settings, say: Say = print) -> list[Outcome]:
    """Look at incoming once, upload by upload; each outcome is also said.

    A fault at one upload leaves that one. Raises ConnectionError when the store answers no more.
    """
    outcomes: list[Outcome] = []

    def add(outcome: Outcome) -> None:
        outcomes.append(outcome)
        say(str(outcome))

    found, strays = inbox.find(box)
    if not settings.dry_run:
        landing.recover(
            settings.root, {landing.folder(upload.dataset, upload.name) for upload in found if not upload.done}
        )
    for name in strays:
        add(Outcome(uploads.shown(name), "left", "It lies in no folder <dataset>/<upload>/."))
    budget = settings.limits.run
    with uploads.checker() as check:
        for upload in found:
            if upload.done:
                if inbox.used_again(box, upload, upload.done):
                    text = "Its manifest was written again after it was done: upload under a new upload id."
                    add(Outcome(str(upload), "left", text))
            else:
                outcome, size = _look_at(box, upload, settings, check, budget)
                budget -= size
                if outcome is not None:
                    add(outcome)
    return outcomes


def _look_at(box: Inbox, upload: Upload, settings: Settings, check: Check, budget: int) -> tuple[Outcome | None, int]:
    """One upload: what became of it (None: it is an empty folder), and the bytes that were downloaded for it."""
    try:
        if not inbox.listed(box, inbox.prefix(box, upload), 0)[0]:  # some stores keep folders whose files are gone
            return None, 0
        if upload.dataset == GENERATED:
            return Outcome(str(upload), "left", "This version has no stage for generated images."), 0
        if settings.dry_run:
            return _look_only(box, upload, settings), 0
        claim = inbox.claim(box, upload)
        try:
            return _take(claim, upload, settings, check, budget)
        finally:
            inbox.release(claim)
    except ConnectionError:
        raise
    except LeftError as error:
        return Outcome(str(upload), "left", f"{error}."), 0
    except OSError as error:
        return Outcome(str(upload), "left", inbox.masked(f"{error}."), error=True), 0


def _listing(box: Inbox, upload: Upload, limits: uploads.Limits) -> tuple[dict[str, Item], float]:
    """The objects of an upload by path, and the seconds since the last of them came."""
    items, now = inbox.listed(box, inbox.prefix(box, upload), limits.files + 1)
    if not items or now is None:
        raise LeftError("nothing in it")
    return {item.name: item for item in items}, (now - max(item.modified for item in items)).total_seconds()


def _beyond(items: Mapping[str, Item], limits: uploads.Limits) -> str:
    return uploads.beyond({name: item.size for name, item in items.items() if name != uploads.MANIFEST}, limits)


def _manifest(
    box: Inbox, upload: Upload, settings: Settings, items: Mapping[str, Item], quiet: float, known: Mapping[str, str]
) -> uploads.Manifest:
    """The manifest of a complete upload. ValueError: the reason against the whole upload; LeftError: not complete."""
    if over := _beyond(items, settings.limits):
        raise ValueError(over)
    if uploads.MANIFEST not in items:
        late = quiet > settings.report_after
        since = f"for {quiet / 3600:.1f} h nothing came: end it with its manifest, or delete it"
        raise LeftError(f"no {uploads.MANIFEST}: " + (since if late else "it is not complete"))
    if not re.fullmatch(uploads.UPLOAD_ID, upload.name):
        raise ValueError("upload id: letters, digits, dots, - and _ are accepted (at most 100)")
    uploads.module(upload.dataset)
    size = items[uploads.MANIFEST].size
    if size > settings.limits.manifest:
        raise ValueError(f"{uploads.MANIFEST} has {size} bytes: more than {settings.limits.manifest} are not read")
    data = s3.read(f"s3://{box.bucket}/{items[uploads.MANIFEST].key}", 0, size)
    manifest = uploads.read_manifest(data, upload.dataset)
    absent = {entry.path for entry in manifest.files} - set(items) - set(known)
    if absent and quiet < settings.settle:
        first = uploads.shown(min(absent))
        raise LeftError(f"{len(absent)} files of the manifest are still to come, {first} among them")
    return manifest


def sort_out(
    manifest: uploads.Manifest, items: Mapping[str, Item], known: Mapping[str, str], limits: uploads.Limits
) -> tuple[list[uploads.Entry], dict[str, str]]:
    """The files worth a download, and the reasons against the others, as far as the listing says."""
    reasons = dict.fromkeys(set(items) - {uploads.MANIFEST}, f"not listed in {uploads.MANIFEST}")
    good = []
    for entry in manifest.files:
        item = items.get(entry.path)
        reason = known.get(entry.path, "")
        if reason:
            pass
        elif item is None:
            reason = f"listed in {uploads.MANIFEST}, but not uploaded"
        elif item.size != entry.size:
            reason = f"has {item.size} bytes, by {uploads.MANIFEST} {entry.size}"
        elif not 0 < item.size <= limits.file:
            reason = f"{item.size} bytes: 1 to {limits.file} are accepted"
        else:
            try:
                uploads.check_ending(entry.path)
            except ValueError as error:
                reason = str(error)
        reasons[entry.path] = reason
        if not reason:
            good.append(entry)
    return good, {**known, **{path: reason for path, reason in reasons.items() if reason}}


def _look_only(box: Inbox, upload: Upload, settings: Settings) -> Outcome:
    """What the listing and the manifest say; nothing is claimed, downloaded or moved."""
    items, quiet = _listing(box, upload, settings.limits)
    try:
        manifest = _manifest(box, upload, settings, items, quiet, {})
    except ValueError as error:
        return Outcome(str(upload), "quarantined", f"Would be: {error}.")
    good, reasons = sort_out(manifest, items, {}, settings.limits)
    text = f"Would be downloaded and looked at: {len(good)} files, {sum(entry.size for entry in good)} bytes."
    return Outcome(str(upload), "left", text, upload.dataset, refused=reasons)


def _take(claim: Claim, upload: Upload, settings: Settings, check: Check, budget: int) -> tuple[Outcome, int]:
    box, limits, size = claim.inbox, settings.limits, 0
    items, quiet = _listing(box, upload, limits)
    against, known = inbox.reasons(box, upload)
    if against:  # a killed look has begun to move it
        return _refuse(claim, upload, items, against, settings), 0
    try:
        manifest = _manifest(box, upload, settings, items, quiet, known)
        good, reasons = sort_out(manifest, items, known, limits)
        size = sum(entry.size for entry in good)
        if size > budget and budget < limits.run:
            raise LeftError("this look has downloaded its share: the next one takes it")
        landing.check_space(settings.root, upload.dataset, size)
        work = landing.prepare(settings.root, upload.dataset, upload.name, items[uploads.MANIFEST].etag)
        reasons |= _download(claim, good, items, work / landing.FILES, check)
        if reasons and not manifest.partial:
            raise ValueError(f"all or nothing (partial: false), and {len(reasons)} files are bad: {_some(reasons)}")
        files = {entry.path: entry.sha256 for entry in good if entry.path not in reasons}
        with _workspace(settings.root):
            inbox.hold(claim, sure=True)
            result = landing.merge(
                settings.root,
                upload.dataset,
                work,
                files,
                missing=[entry.path for entry in manifest.files if entry.path in reasons],
                whole=not manifest.partial,
                progress=lambda *_: inbox.hold(claim),
            )
    except ValueError as error:
        return _refuse(claim, upload, items, str(error), settings), size
    reasons |= result.refused
    _quarantine(claim, upload, items, "", reasons)
    record = {"state": "taken", "files": result.taken, "there": result.there, "quarantined": len(reasons)}
    inbox.finish(claim, upload, record)
    landing.drop(settings.root, upload.dataset, upload.name)
    text = f"{result.text} {len(reasons)} files quarantined." if reasons else result.text
    state: Literal["taken", "quarantined"] = "taken" if result.taken + result.there else "quarantined"
    return Outcome(str(upload), state, text, upload.dataset, result.taken, result.there, reasons), size


@contextmanager
def _workspace(root: Path) -> Iterator[None]:
    """The workspace while no stage reads the datasets. LeftError while another run is at work in it."""
    with ExitStack() as stack:
        try:
            stack.enter_context(walk.alone(root))
        except ValueError as error:
            raise LeftError(str(error)) from None
        yield


def _download(
    claim: Claim, entries: list[uploads.Entry], items: Mapping[str, Item], folder: Path, check: Check
) -> dict[str, str]:
    """Download files and look into them: reasons of the bad ones, which are removed again."""
    reasons = {}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        fetched = [
            (entry, pool.submit(inbox.fetch, claim.inbox, items[entry.path], folder / entry.path, entry.sha256))
            for entry in entries
        ]
        try:
            for entry, future in fetched:
                while not future.done():
                    wait([future], timeout=claim.inbox.patience / 12)
                    inbox.hold(claim)
                reason = future.result() or check(folder / entry.path)
                inbox.hold(claim)
                if reason:
                    reasons[entry.path] = reason
                    (folder / entry.path).unlink()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return reasons


def _refuse(claim: Claim, upload: Upload, items: Mapping[str, Item], reason: str, settings: Settings) -> Outcome:
    """A whole upload goes to quarantine, or stays where it is when it is too large to be copied."""
    moved = {} if _beyond(items, settings.limits) else items
    if not moved:
        reason += "; its objects were not looked at and stay in incoming"
    _quarantine(claim, upload, moved, reason, {})
    inbox.finish(claim, upload, {"state": "quarantined", "reason": reason})
    landing.drop(settings.root, upload.dataset, upload.name)
    return Outcome(str(upload), "quarantined", f"{reason}.", upload.dataset)


def _quarantine(
    claim: Claim, upload: Upload, items: Mapping[str, Item], reason: str, reasons: Mapping[str, str]
) -> None:
    """Write the reasons down, then move the bad files, or with a `reason` all of them, the manifest last."""
    if not reason and not reasons:
        return
    inbox.hold(claim, sure=True)
    inbox.write_reasons(claim.inbox, upload, reason, dict(reasons))
    for name in sorted(items, key=lambda name: (name == uploads.MANIFEST, name)):
        if reason or name in reasons:
            inbox.hold(claim)
            inbox.quarantine(claim.inbox, upload, items[name])


def _some(reasons: Mapping[str, str]) -> str:
    return ", ".join(f"{uploads.shown(name)} ({reason})" for name, reason in sorted(reasons.items())[:3])
