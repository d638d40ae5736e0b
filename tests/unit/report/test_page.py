"""The page: everything in its place, nothing fetched, nothing executed, the same bytes twice."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.unit.report import made
from unforge import figures, generators, markdown, paths, profiles, report, specs, tables
from unforge.report import page

VOID = {"meta", "img", "br", "hr", "link", "input", "line", "circle", "path", "use", "rect"}


@dataclass
class Node:
    tag: str
    attributes: dict[str, str]
    children: list[Node | str] = field(default_factory=list)

    @property
    def text(self) -> str:
        parts = [child if isinstance(child, str) else child.text for child in self.children]
        return " ".join(" ".join(parts).split())

    def all(self, tag: str = "", **wanted: str) -> list[Node]:
        found = []
        for child in self.children:
            if isinstance(child, Node):
                has = {
                    key.replace("_", "-"): value for key, value in wanted.items()
                }.items() <= child.attributes.items()
                found += [child] if has and tag in ("", child.tag) else []
                found += child.all(tag, **wanted)
        return found


class Tree(HTMLParser):
    """A tree of elements; raises AssertionError when tags do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.root = Node("", {})
        self.open = [self.root]
        self.feed(text)
        assert [node.tag for node in self.open] == [""], "unclosed elements"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        node = Node(tag, {key: value or "" for key, value in attrs})
        self.open[-1].children.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open[-1].children.append(Node(tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open[-1].tag == tag, f"</{tag}> closes <{self.open[-1].tag}>"
            self.open.pop()

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    made.project(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Node:
    """The page of the project as it is made."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made.project(tmp_path_factory.mktemp("project")))
        return parsed(report.render(made.PROFILE))


def parsed(text: str) -> Node:
    return Tree(text).root


def rewrite(path: Path, **changes: object) -> None:
    """Set columns of every row of a Parquet file."""
    table = pq.read_table(path)
    rows = [row | changes for row in table.to_pylist()]
    pq.write_table(table.from_pylist(rows, schema=table.schema), path)


def test_every_cell_stands_in_its_place(tree: Node) -> None:
    table = tree.all("table", data_table="sparsevit.table_2")[0]
    for cell in made.cells():
        place = table.all("td", data_row=cell["row"], data_column=cell["column"])
        assert len(place) == 1, cell
        text = place[0].text
        assert place[0].attributes["data-status"] == cell["status"]
        assert page.STATUSES[cell["status"]][1] in text
        if cell["printed"] is not None:
            assert f"paper {cell['printed']}" in text
        if cell.get("measured") is not None:
            digits = 2 if cell["column"] == "params" else 3
            assert f"{cell['measured']:.{digits}f}" in text
        if cell.get("ci_low") is not None:
            assert f"{cell['ci_low']:.3f} to {cell['ci_high']:.3f}" in text
            assert "n 80 · 3 seeds, sd 0.041" in text
    assert len(table.all("td", data_column="f1")) == len(made.cells()) / 2 + 2, "and two rows of constant baselines"


def test_rows_stand_in_the_papers_order_and_added_ones_in_a_block_of_their_own(tree: Node) -> None:
    table = tree.all("table", data_table="sparsevit.table_2")[0]
    own, added = table.all("tbody")[:2]
    assert [row.all("td")[0].attributes["data-row"] for row in own.all("tr")] == ["dense", "other", "full"]
    assert added.attributes["class"] == "added"
    assert "Added by unforge: truncated stem" in added.all("tr", **{"class": "blockname"})[0].text
    assert [node.attributes["data-row"] for node in added.all("td", data_column="f1")] == ["stem"]


def test_baselines_notes_and_errata_are_shown(tree: Node) -> None:
    exhibit = tree.all("section", id="sparsevit.table_2")[0]
    assert [node.text for node in exhibit.all("td", data_baseline="baseline_all")] == ["", "0.198"]
    assert [node.text for node in exhibit.all("td", data_baseline="baseline_centre")] == ["", "0.212"]
    notes = exhibit.all("div", **{"class": "notes"})[0].text
    for expected in ("casia1 is a stand-in", "Threshold 0.5.", "TruFor:", "Printed twice."):
        assert expected in notes


def test_a_cell_whose_interval_reaches_a_constant_says_so(tree: Node) -> None:
    table = tree.all("table", data_table="sparsevit.table_2")[0]
    marked = [node.attributes["data-row"] for node in table.all("td") if "not clearly above constant" in node.text]
    assert marked == ["dense"]


@pytest.mark.parametrize(
    ("low", "every", "centre", "expected"),
    [(0.3, 0.2, 0.25, False), (0.25, 0.2, 0.25, True), (0.3, None, 0.4, True), (0.0, None, None, False)],
)
def test_weak_compares_the_lower_bound_with_the_better_baseline(
    low: float, every: float | None, centre: float | None, expected: bool
) -> None:
    cell = {"measured": 0.5, "ci_low": low, "baseline_all": every, "baseline_centre": centre, "metric": "pixel_iou"}
    assert page.weak(cell) is expected
    assert page.weak(cell | {"metric": "false_positives"}) is False, "less is better: a constant is no measure"


def test_the_first_screen_counts_what_was_measured(tree: Node) -> None:
    lead = tree.all("section", id="read")[0].text
    assert "2 match, 0 differ." in lead
    assert "4 measured but not comparable." in lead
    assert "Of the 3 cells measured on images, 3 are on stand-ins only, 0 on real benchmark images" in lead
    assert "1 of 3 not clearly above a constant" in lead
    assert "Of 2 comparative claims 1 hold, 0 fail, 1 are undecided" in lead
    assert "1 of the undecided could not be measured at all" in lead
    assert "Not built: sparsevit.table_3." in lead
    facts = tree.all("dl", **{"class": "facts"})[0].text
    assert "small scale" in facts
    assert "stand-ins only" in facts
    assert "Seed 7" in facts
    row = next(row for row in tree.all("table", id="status")[0].all("tr") if "Table 2" in row.text)
    assert [node.text for node in row.all("td")][1:7] == ["2", "0", "4", "2", "0", "0"]


def test_claims_audit_curves_and_commands_are_there(tree: Node) -> None:
    claim = tree.all("tr", data_claim="sparse_beats_dense")[0].text
    for expected in ("holds", "0.457", "0.103", "+0.353", "+0.300 to +0.400", "n 80 · 3 seeds", "line 174"):
        assert expected in claim
    assert "undecided" in tree.all("tr", data_claim="lff_beats_mlp")[0].text
    assert "printed 0.551, the mean is 0.501" in tree.all("section", id="sparsevit-audit")[0].text
    figure = tree.all("section", id="sparsevit.figure_6")[0]
    assert len(figure.all("svg")) == 1
    assert "SparseViT stem" in figure.all("svg")[0].text
    rows = [row.text for row in figure.all("table", data_figure="sparsevit.figure_6")[0].all("tr")]
    assert len(rows) == 1 + len(made.points())
    assert "JPEG SparseViT full 90 0.350 0.300 to 0.400 80" in rows[2]
    assert "dvc repro papers/sparsevit/dvc.yaml:table_3" in tree.all("section", id="reproduce")[0].text


def test_what_was_not_built_is_named_with_its_command(root: Path) -> None:
    (root / "reports" / made.PROFILE / "audit.parquet").unlink()
    tree = parsed(report.render(made.PROFILE))
    assert "was not built" in tree.all("section", id="sparsevit.table_3")[0].text
    assert "dvc repro papers/sparsevit/dvc.yaml:table_3" in tree.all("section", id="sparsevit.table_3")[0].text
    assert "dvc repro audit" in tree.all("section", id="sparsevit-audit")[0].text


def test_links_lead_to_places_in_the_page_and_nothing_is_fetched(root: Path) -> None:
    text = report.render(made.PROFILE)
    tree = parsed(text)
    targets = {node.attributes["id"] for node in tree.all() if "id" in node.attributes}
    for node in tree.all():
        for name in ("src", "href", "xlink:href", "action", "data", "srcset"):
            value = node.attributes.get(name)
            assert value is None or value.startswith(("data:image/", "#")), (node.tag, name, value)
            if value and value.startswith("#"):
                assert value[1:] in targets, value
    assert not [node.tag for node in tree.all() if node.tag in ("script", "link", "iframe", "object", "embed")]
    style = "".join(node.text for node in tree.all("style"))
    assert "@import" not in text
    assert "url(" not in style.replace("url(#", "")
    assert (
        "default-src 'none'" in tree.all("meta", **{"http-equiv": "Content-Security-Policy"})[0].attributes["content"]
    )


HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&amp; {{ 7 * 7 }} $x^{$ ${ </style></svg>"


def test_hostile_text_stays_text(root: Path) -> None:
    reports = root / "reports" / made.PROFILE
    rewrite(reports / "tables/sparsevit.table_2.parquet", row_label=HOSTILE, note=HOSTILE, column_label=HOSTILE)
    rewrite(reports / "tables/sparsevit.figure_6.parquet", series_label=HOSTILE, panel_label=HOSTILE)
    rewrite(reports / "claims.parquet", text=HOSTILE, note=HOSTILE)
    rewrite(reports / "audit.parquet", detail=HOSTILE)
    for path in reports.rglob("samples.parquet"):
        table = pq.read_table(path)
        rows = [row | {"key": HOSTILE + str(n)} for n, row in enumerate(table.to_pylist())]
        pq.write_table(table.from_pylist(rows, schema=table.schema), path)
    text = report.render(made.PROFILE)
    tree = parsed(text)
    assert not tree.all("script")
    assert not [node for node in tree.all() if any(name.startswith("on") for name in node.attributes)]
    assert {node.attributes["src"][:11] for node in tree.all("img")} == {"data:image/"}
    assert "49" not in tree.all("section", id="sparsevit-audit")[0].text
    plain = " ".join(HOSTILE.split())
    for place in ("sparsevit.table_2", "sparsevit-claims", "sparsevit-audit", "sparsevit-gallery"):
        assert plain in tree.all("section", id=place)[0].text
    svg = tree.all("section", id="sparsevit.figure_6")[0].all("svg")[0]
    assert plain in svg.text


def test_pictures_of_sets_that_may_not_be_passed_on_are_left_out(tree: Node) -> None:
    gallery = tree.all("section", id="sparsevit-gallery")[0]
    assert "Images and overlays of nist16 are left out" in gallery.text
    assert "Images and overlays of the stand-in coverage are left out" in gallery.text
    assert "nist16_1" not in gallery.text
    pictures = {node.attributes["alt"]: node.attributes["src"] for node in gallery.all("img")}
    shown = {alt for alt in pictures if alt.startswith(("Image ", "Prediction over "))}
    assert shown == {
        f"{start}{where}{end}"
        for where in ("casia1 casia1_1", "columbia columbia_1")
        for start, end in (
            ("Image ", ""),
            ("Prediction over ", ", SparseViT"),
            ("Prediction over ", ", SparseViT, with stem (added)"),
        )
    }
    assert "True mask of coverage coverage_1" in pictures
    assert not [alt for alt in pictures if "nist16" in alt]


def test_no_pixel_of_a_photograph_that_may_not_be_passed_on_gets_in(root: Path) -> None:
    for path in (root / "reports").rglob("samples.parquet"):
        rewrite(path, redistribute=False)
    first = report.render(made.PROFILE)
    other = made.encode(np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8), "JPEG")
    for path in (root / "reports").rglob("samples.parquet"):
        rewrite(path, image=other)
    assert report.render(made.PROFILE) == first


def test_gallery_shows_what_is_there_and_names_what_is_not(tree: Node) -> None:
    attention, predictions, rates, _ = tree.all("section", **{"class": "wall"})
    heads = [node.text for node in attention.all("thead")[0].all("th")]
    assert heads == ["Image of", "image", "truth", "dense", "sparse"]
    assert len(attention.all("img")) == 2 * 4 + 3
    assert "No samples of dense, with stem (added)" in attention.text
    assert len(predictions.all("img")) == 2 * (2 + 2 * 2) + 3
    assert [node.text for node in rates.all("thead")[0].all("th")][3:] == ["S = 2", "mixed", "mixed, stem (added)"]
    kinds = [row.all("th")[0].text for row in attention.all("tbody")[0].all("tr")]
    assert kinds == [
        "casia1 stand-in splice casia1_1",
        "columbia real splice columbia_1",
        "coverage stand-in splice coverage_1",
    ]


def test_two_runs_give_the_same_bytes_and_a_small_file(root: Path) -> None:
    first = report.write(made.PROFILE).read_bytes()
    assert report.write(made.PROFILE).read_bytes() == first
    assert len(first) < 5 * 2**20
    assert not list((root / "reports" / made.PROFILE).glob(".index*"))


def test_no_place_of_this_machine_gets_in(root: Path) -> None:
    text = report.render(made.PROFILE)
    assert str(root) not in text
    assert "/src/unforge" not in text


def test_assumptions_of_the_source_are_listed(tree: Node) -> None:
    section = tree.all("section", id="assumptions")[0]
    package = Path(page.__file__).parent.parent
    marked = [
        (path.relative_to(package).as_posix(), number)
        for folder in ("datasets", "forgeries", "methods")
        for path in sorted((package / folder).rglob("*.py"))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if "ASSUMPTION(paper):" in line
    ]
    assert marked
    for file, line in marked:
        assert f"{file}:{line}" in section.text


def test_the_page_of_the_real_specs_can_be_written_before_anything_is_built(project: Path) -> None:
    name = profiles.load().name
    tree = parsed(report.render(name))
    for paper in specs.papers():
        for entry in (*specs.tables(paper), *specs.figures(paper)):
            assert "was not built" in tree.all("section", id=f"{paper}.{entry}")[0].text


def test_marks_are_those_of_the_tables(tree: Node) -> None:
    assert tuple(page.STATUSES) == tables.STATUSES
    assert re.search(r"\w", "".join(word for _, word, _ in page.STATUSES.values())), "never by colour alone"


def test_made_up_tables_have_the_columns_of_real_ones() -> None:
    assert made.CELL.names == tables.CELLS.names
    assert set(made.POINT.names) - {"block"} <= set(figures.POINTS.names)


def in_percent(root: Path) -> None:
    """The table that was built, printed in percent: 82.7 for what is measured as 0.4567."""
    path = root / "papers/sparsevit/table_2.yaml"
    path.write_text(path.read_text().replace("protocol: catnet", "protocol: catnet\npercent: true"))
    table = root / f"reports/{made.PROFILE}/tables/sparsevit.table_2.parquet"
    rows = pq.read_table(table).to_pylist()
    for row in rows:
        row["percent"] = row["column"] == "f1"
        row["printed"] = "82.7%(+3.25)" if row["column"] == "f1" and row["printed"] else row["printed"]
    made.save(table, rows, made.CELL)


def test_what_is_printed_in_percent_is_shown_so(root: Path) -> None:
    in_percent(root)
    table = parsed(report.render(made.PROFILE)).all("table", data_table="sparsevit.table_2")[0]
    (cell,) = table.all("td", data_row="full", data_column="f1")
    for words in ("45.7 40.1 to 51.2", "paper 82.7%(+3.25)", "sd 4.1"):
        assert words in cell.text
    assert table.all("td", data_baseline="baseline_all", data_column="f1")[0].text == "19.8"
    assert "1.01" in table.all("td", data_row="full", data_column="params")[0].text, "counts stay as they are"


def test_generators_are_shown_once_they_are_there(root: Path) -> None:
    assert parsed(report.render(made.PROFILE)).all("section", id="generators") == []
    about = profiles.load(made.PROFILE)
    folder = root / paths.codebook(about.name, "rar")
    folder.mkdir(parents=True)
    meta = paths.meta({"measured": {"psnr": 21.345, "codes": 256}}, 0, {})
    paths.write_json(folder / "meta.json", meta)
    generators.write(generators.build(about, ["rar"]), root / f"reports/{made.PROFILE}/generators")
    (shown,) = parsed(report.render(made.PROFILE)).all("section", id="generators")
    assert "PSNR" in shown.text
    assert "rar 21.34" in shown.text


def test_a_figure_that_its_paper_calls_a_table(root: Path) -> None:
    figure = {"kind": "dynamics", "caption": "Training.", "place": "Table 3 (caption: line 528)", "protocol": "catnet"}
    figure |= {"series": [{"id": "full", "label": "SparseViT", "method": "sparsevit"}]}
    made.write_yaml(root / "papers/sparsevit/figure_table_3.yaml", figure)
    (section,) = parsed(report.render(made.PROFILE)).all("section", id="sparsevit.figure_table_3")
    assert section.text.startswith("Table 3 caption: line 528")
    assert "was not built" in section.text
    points = figures.build("sparsevit", "figure_table_3", profiles.load(made.PROFILE))
    markdown.write_parquet(points, root / f"reports/{made.PROFILE}/tables/sparsevit.figure_table_3.parquet")
    (section,) = parsed(report.render(made.PROFILE)).all("section", id="sparsevit.figure_table_3")
    assert "training images of each class" in section.text
    assert section.all("svg")


def test_a_part_of_a_supplements_figure(root: Path) -> None:
    figure = {"kind": "attention", "caption": "Maps.", "place": "Figure S1a (caption: line 53)", "protocol": "catnet"}
    shown = {"id": "full", "label": "SparseViT", "method": "sparsevit", "extra": "attention_last"}
    figure |= {"testsets": ["casia1"], "frames": ["real"], "series": [shown]}
    made.write_yaml(root / "papers/sparsevit/figure_s1a.yaml", figure)
    points = figures.build("sparsevit", "figure_s1a", profiles.load(made.PROFILE))
    markdown.write_parquet(points, root / f"reports/{made.PROFILE}/tables/sparsevit.figure_s1a.parquet")
    (section,) = parsed(report.render(made.PROFILE)).all("section", id="sparsevit.figure_s1a")
    assert section.text.startswith("Figure S1a caption: line 53")
    assert "scaled to its own maximum" in section.text
    assert "nothing to show" in section.text


def test_every_kind_of_figure_has_its_words() -> None:
    kinds = set(get_args(specs.Figure.model_fields["kind"].annotation))
    assert set(page.SAYS) == kinds
