"""Images that official image autoregressive models generated elsewhere, with their token maps: `generated/var` etc.

Unlike other sets this one needs to know the model: its images have one size, its token maps one form. In the DAG
small models sample such sets themselves; one that was added takes their place in profiles without stand-ins.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from unforge import paths, seeds
from unforge.datasets import layout
from unforge.types import Card, Found, Sample, StandIn

if TYPE_CHECKING:
    import numpy as np

    from unforge.datasets.ingest import Progress

VERSION = "1"
FILE = "generation.json"
TOKENS = ("npy", "safetensors", "pt")
"""File name endings of token maps."""
MAX_TOKEN_BYTES = 16 * 2**20
"""Largest token file that is read: Infinity's 10,521 tokens of 32 bits, as int64, are 2.7 MB."""
MAX_IMAGE_BYTES = 64 * 2**20
MAX_FILE_BYTES = 2**16
SPLITS = (("train", 0.6), ("val", 0.1), ("test", 0.3))
"""Share of the images in each split; only PNGs with tokens, from which an inverse decoder learns, are ever outside
`test`."""
NO_TOKENS = "no token map (or several) of this name: usable as a positive, not for training an inverse decoder"
ORPHAN = "token map without an image of this name"

CARD = Card(
    name="images of official image autoregressive models",
    images={},
    licence="yours: that of the model's outputs",
    redistribute=False,
    source="sampled with a model's official checkpoint: a directory, a zip or tar archive, or s3://",
    layout="images/<name>.png (8-bit RGB, in the model's size) and tokens/<name>.npy, .safetensors (key tokens) or .pt "
    "(a tensor, or a dict with the key tokens), or side by side; integers (N,), row by row, several scales from coarse "
    "to fine; Infinity: bits (N,32); optional generation.json {generation_mode, checkpoint, ...}",
    defects=("JPEG and other files that are no PNG: flagged, in split test, as the traces are of 8-bit PNGs",),
)

STAND_IN: StandIn | None = None


@dataclass(frozen=True, kw_only=True)
class Form:
    """What a model's images and token maps look like at the paper's scale."""

    size: int
    """Side of an image (pixels)."""
    tokens: int
    codes: int = 2
    """Tokens are below this."""
    bits: int | None = None
    """Bits of a token, for a model that has no numbers for them."""


FORMS = {
    "infinity": Form(size=1024, tokens=10521, bits=32),
    "llamagen": Form(size=384, tokens=576, codes=16384),
    "rar": Form(size=256, tokens=256, codes=1024),
    "taming": Form(size=256, tokens=256, codes=16384),
    "var": Form(size=256, tokens=680, codes=4096),
    "vqdiffusion": Form(size=256, tokens=256, codes=974),
}
"""By model. The tokenizers' configurations say the same (a test compares them); datasets do not import those."""


def dataset_id(name: str) -> str:
    """`generated_var` for `generated/var`; every other name as it is. ValueError for a model that is not known."""
    if name != "generated" and not name.startswith("generated/"):
        return name
    origin = name.removeprefix("generated").removeprefix("/")
    if origin not in FORMS:
        raise ValueError(f"{name!r}: say which model made the images: generated/{', generated/'.join(FORMS)}")
    return paths.generated(origin)


def model(dataset: str) -> str | None:
    """The model of the dataset `generated_<model>`; None for any other dataset."""
    return next((origin for origin in FORMS if dataset == paths.generated(origin)), None)


def find(root: Path) -> Iterator[Found]:
    """A row for every image, with `meta` {tokens, generation}: paths relative to `root`, or None; and a rejected one
    for every token file that no image goes with.

    An image and its tokens have the same name, in the same folder or in `images` and `tokens` beside each other.
    """
    listing = layout.files(root)
    images = [path for path in listing if layout.is_image(path)]
    tokens = [path for path in listing if layout.extension(path) in TOKENS]
    descriptions = {path for path in listing if PurePosixPath(path).name == FILE}
    paired = layout.pair(images, tokens, (("name", lambda path: (_place(path), layout.stem(path))),))
    for path in images:
        name = layout.key(layout.stem(path))
        described = (str(folder / FILE) for folder in PurePosixPath(path).parents)
        own = paired[path][0] if path in paired else None
        yield Found(
            key=name, image=Path(root) / path, mask=None, label=1, kind="generated", source=(name,),
            status="ok" if own else "flagged", reason="" if own else NO_TOKENS,
            meta={"tokens": own, "generation": next((d for d in described if d in descriptions), None)},
        )  # fmt: skip
    places = {(_place(path), layout.stem(path)) for path in images}
    for path in tokens:
        if (_place(path), layout.stem(path)) not in places:
            name = layout.key(layout.stem(path))
            yield Found(
                key=name, image=Path(root) / path, mask=None, label=1, kind="generated", source=(name,),
                status="rejected", reason=ORPHAN,
            )  # fmt: skip


def _place(path: str) -> tuple[str, ...]:
    """The folders a file lies in, without the last one that is called `images` or `tokens`."""
    folders = list(PurePosixPath(path).parts[:-1])
    for at in range(len(folders) - 1, -1, -1):
        if folders[at].lower() in ("images", "tokens"):
            return (*folders[:at], *folders[at + 1 :])
    return tuple(folders)


def samples(
    raw: Path, rows: list[dict[str, Any]], seed: int = 0, *, progress: Progress | None = None
) -> Iterator[Sample]:
    """Samples of the set that `unforge data add generated/<model>` put into the directory `raw`.

    The other arguments are those of `read`. ValueError when `raw` holds no such set.
    """
    origin = model(raw.name)
    source = paths.read_json(raw / "SOURCE.json") if (raw / "SOURCE.json").is_file() else {}
    if origin is None or source.get("source") != "real":
        raise ValueError(f"{raw} holds no generated images: unforge data add generated/<model> PATH puts them there")
    yield from read(origin, raw / "files", rows, seed, progress=progress)


def read(
    origin: str, root: Path, rows: list[dict[str, Any]], seed: int = 0, *, progress: Progress | None = None
) -> Iterator[Sample]:
    """Samples of the images of model `origin` at `root`, original bytes untouched, tokens as an npy file.

    Tokens are (N,) int64, or bits (N,d) bool. Those with tokens are split by the hash of (`seed`, key), the others
    are `test`. `meta` has `generation_mode` ("external" where nobody said) and what else generation.json says.
    `rows` gets one row (`shards.ROWS`) per file while the iterator is consumed; `progress(done, total)` is called
    after each.
    """
    from unforge.datasets import ingest

    found = list(find(root))
    seen: dict[str, str] = {}
    keys: set[str] = set()
    for done, row in enumerate(found, start=1):
        sample = None
        try:
            sample, notes = _examined(row, Path(root), origin, seed, seen, keys)
            status, reason = "flagged" if notes else "ok", "; ".join(notes)
        except ingest.UnusableError as error:
            status, reason = "rejected", str(error)
        rows.append(ingest.record(row, Path(root), status, reason, sample.key if sample else None))
        if progress is not None:
            progress(done, len(found))
        if sample is not None:
            yield sample


def _examined(
    found: Found, root: Path, origin: str, seed: int, seen: dict[str, str], keys: set[str]
) -> tuple[Sample, list[str]]:
    """The sample of a row and what is to be known about it; UnusableError says why it is left out."""
    from unforge import shards
    from unforge.datasets import ingest

    if found.status == "rejected":
        raise ingest.UnusableError(found.reason)
    form, notes = FORMS[origin], [found.reason] if found.reason else []
    data = _bytes(found.image, MAX_IMAGE_BYTES)
    place = found.image.relative_to(root).as_posix()
    digest = hashlib.sha256(data).hexdigest()
    if digest in seen:
        raise ingest.UnusableError(f"duplicate: the same bytes as {seen[digest]}")
    extension, image = _image(data, form, notes)
    tokens = None
    if found.meta["tokens"] is not None:
        tokens = shards.encode_npy(token_map(root / found.meta["tokens"], origin))
    mode: dict[str, Any] = {"generation_mode": "external"}
    if found.meta["generation"] is not None:
        mode |= _description(root / found.meta["generation"], notes)
    key = found.key
    if key in keys:
        key = f"{key[:67]}-{hashlib.sha256(place.encode('utf-8', 'backslashreplace')).hexdigest()[:12]}"
    keys.add(key)
    seen[digest] = layout.printable(place)
    sample = Sample(
        key=key, image=data, extension=extension, mask=None, label=1, kind="generated", source=(f"{origin}:{key}",),
        unit=key, split=_split(seed, key) if tokens is not None and extension == "png" else "test",
        meta={**mode, **({"flags": list(notes)} if notes else {})}, pixels=shards.describe(image, None), origin=origin,
        tokens=tokens,
    )  # fmt: skip
    return sample, notes


def _bytes(path: Path, most: int) -> bytes:
    """Content of a regular file of at most `most` bytes; UnusableError for any other."""
    from unforge.datasets import ingest

    _regular(path, most)
    try:
        return path.read_bytes()
    except OSError as error:
        raise ingest.UnusableError(f"{path.name} cannot be read ({error.strerror or type(error).__name__})") from None


def _regular(path: Path, most: int) -> None:
    from unforge.datasets import ingest

    if not path.is_file():
        raise ingest.UnusableError(f"{path.name} is not a regular file")
    if (size := path.stat().st_size) > most:
        raise ingest.UnusableError(f"{path.name} has {size} bytes: more than {most} are not read")


def _image(data: bytes, form: Form, notes: list[str]) -> tuple[str, np.ndarray]:
    """Format by content, and pixels; a format other than PNG goes to `notes`. UnusableError for what is not 8-bit
    RGB in the model's size."""
    from unforge import shards
    from unforge.datasets import ingest

    try:
        header = shards.open_image(data)
    except ValueError as error:
        raise ingest.UnusableError(str(error)) from None
    if header.size != (form.size, form.size):
        raise ingest.UnusableError(
            f"{header.width}x{header.height} pixels: the model's images have {form.size}x{form.size}, and resampling "
            "destroys what is looked for"
        )
    depth = data[24] if header.format == "PNG" else 8  # Pillow reduces 16-bit RGB silently
    if header.mode != "RGB" or depth != 8 or "transparency" in header.info:
        raise ingest.UnusableError(f"{header.format} of mode {header.mode}, {depth} bits: 8-bit RGB is needed")
    if header.format != "PNG":
        notes.append(f"{header.format}: the traces are those of 8-bit PNGs; a positive, not for training")
    try:
        return shards.EXTENSIONS[str(header.format)], shards.decode_image(data)
    except ValueError as error:
        raise ingest.UnusableError(str(error)) from None


def token_map(path: Path, origin: str) -> np.ndarray:
    """Tokens of one image of model `origin` from an npy, safetensors or pt file: (N,) int64, or (N,d) bool.

    A leading axis of 1 is dropped; bits may be bool or integers. UnusableError (a ValueError) for a file that holds
    anything else, or a map of another length or range than the model's.
    """
    import numpy as np

    from unforge.datasets import ingest

    form = FORMS[origin]
    try:
        _regular(path, MAX_TOKEN_BYTES)
        array = READERS[layout.extension(path.name)](path)
    except ingest.UnusableError:
        raise
    except Exception as error:  # parsers raise anything from struct.error to SyntaxError on hostile bytes
        raise ingest.UnusableError(f"tokens {path.name} cannot be read ({type(error).__name__}: {error})") from None
    shape = (form.tokens,) if form.bits is None else (form.tokens, form.bits)
    given = f"tokens {array.shape} of {array.dtype}"
    if array.shape == (1, *shape):
        array = array[0]
    if array.shape != shape or array.dtype.kind not in ("iu" if form.bits is None else "biu"):
        kind = "integers" if form.bits is None else "bits"
        raise ingest.UnusableError(f"{given}: {origin} has {kind} of shape {shape}")
    if array.min() < 0 or array.max() >= form.codes:
        raise ingest.UnusableError(
            f"tokens from {array.min()} to {array.max()}: those of {origin} are 0 to {form.codes - 1}"
        )
    return array.astype(np.int64 if form.bits is None else np.bool_)


def _npy(path: Path) -> np.ndarray:
    import numpy as np

    # mapped, so that a header which promises more than there is allocates nothing
    return np.lib.format.open_memmap(path, mode="r")


def _safetensors(path: Path) -> np.ndarray:
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        array: np.ndarray = file.get_tensor("tokens")
    return array


def _pt(path: Path) -> np.ndarray:
    """What torch saved, tensors only. Not compressed, as torch writes it: a bomb is refused before it is read."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if any(m.compress_type != zipfile.ZIP_STORED for m in members) or sum(m.file_size for m in members) > (
            MAX_TOKEN_BYTES
        ):
            raise ValueError("compressed, or more bytes than the file has: torch writes no such files")
    # by name: datasets must stay free of torch for whoever builds tables, and only this file format needs it
    torch = importlib.import_module("torch")
    content = torch.load(path, map_location="cpu", weights_only=True)
    array: np.ndarray = (content["tokens"] if isinstance(content, dict) else content).numpy()
    return array


READERS = {"npy": _npy, "safetensors": _safetensors, "pt": _pt}


def _description(path: Path, notes: list[str]) -> dict[str, Any]:
    """What generation.json says; what is wrong with it goes to `notes`, and then it says nothing."""
    from unforge.datasets import ingest

    try:
        return _parsed(_bytes(path, MAX_FILE_BYTES))
    except (ingest.UnusableError, ValueError, RecursionError) as error:
        notes.append(f"{FILE} is left out: {error}")
        return {}


@functools.lru_cache(maxsize=8)
def _parsed(data: bytes) -> dict[str, Any]:
    value = json.loads(data)
    if not isinstance(value, dict) or not isinstance(value.get("generation_mode", ""), str):
        raise ValueError("give an object whose generation_mode is text")
    mode = value.pop("generation_mode", "") or "external"
    return {"generation_mode": mode, **({"generation": value} if value else {})}


def _split(seed: int, key: str) -> str:
    left = seeds.fraction(seed, key, "generated split")
    for name, share in SPLITS:
        left -= share
        if left < 0:
            return name
    return SPLITS[-1][0]
