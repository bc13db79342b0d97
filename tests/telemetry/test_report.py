"""Truth: identities. What went in is found in the page, escaped, and nothing outside the folder is asked for."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from cogvideox.telemetry.chart import Series, line_chart, thin_out
from cogvideox.telemetry.report import write_report
from cogvideox.telemetry.samples import last_samples
from cogvideox.telemetry.sinks import RunLogger

EVIL = '<script>alert("x")</script> & \'"><img src=http://evil.example/a.png>'
VOID = {"meta", "br", "img", "link", "input"}


class Page(HTMLParser):
    """Every tag with its attributes; fails where tags do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        assert not self._open, f"not closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def add_video(folder: Path, kind: str, iteration: int, number: int) -> None:
    path = folder / "video" / f"{kind}_gs-{iteration:06d}" / f"{number:06d}.mp4"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"not really a video")


def add_captions(folder: Path, iteration: int, *captions: str) -> None:
    path = folder / "video_texts" / f"{iteration:08d}"
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(each + "\n" for each in captions), encoding="utf-8")


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "run <b>&1"
    log = RunLogger(folder, tensorboard=False)
    for step in range(1, 101):
        loss = math.nan if step == 50 else 2.0 / step
        if step in (20, 50):
            for rank in (0, 1):
                log.data_line(step, "loss not <finite>", {"rank": rank, "loss": math.nan})
        log.iteration(step, {"loss": loss, "lr": 1e-4, "seconds_per_iteration": 0.5, "peak_memory_gib": step / 100})
    log.evaluation(100, {"loss": 0.75}, split="val")
    log.close()
    (folder / "training_config.yaml").write_text(
        f"args:\n  train_iters: 100\n  experiment_name: '{EVIL.replace(chr(39), chr(39) * 2)}'\n"
    )
    for kind in ("samples", "inputs", "reconstructions"):
        for number in (0, 1):
            add_video(folder, kind, 50, number)
            add_video(folder, kind, 100, number)
    add_captions(folder, 50, "old", "older")
    add_captions(folder, 100, "a red kite", EVIL)
    return folder


def test_everything_that_went_in_is_there(run_folder: Path) -> None:
    path = write_report(run_folder)
    assert path == run_folder / "report.html"
    page = Page(path.read_text(encoding="utf-8"))
    for text in ("a red kite", EVIL, "run <b>&1", "Samples at iteration 100", "0.75000", "1.00 GiB", "train_iters"):
        assert text in page.text
    assert "loss not <finite>at 2 iterations, first 20, last 50" in page.text.replace("\n", "")
    assert "old" not in page.text.split()
    assert re.search(r"torch\s*\d+\.\d+", page.text)
    assert [each["role"] for each in page.all("svg")] == ["img", "img"]
    sources = [each["src"] for each in page.all("video")]
    kinds = ("inputs", "reconstructions", "samples")
    assert sources == [f"video/{kind}_gs-000100/{number:06d}.mp4" for number in (0, 1) for kind in kinds]
    assert all((run_folder / str(source)).is_file() for source in sources)


def test_nothing_runs_and_nothing_is_fetched(run_folder: Path) -> None:
    page = Page(write_report(run_folder).read_text(encoding="utf-8"))
    assert not {"script", "img", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href"):
            assert not re.match(r"[a-z]+:|/", attributes.get(name) or "")
    style = write_report(run_folder).read_text(encoding="utf-8").split("<style>")[1].split("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style


def test_an_empty_folder_and_a_broken_config_still_give_a_page(tmp_path: Path) -> None:
    (tmp_path / "training_config.yaml").write_text("a: [1, 2")
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert "No metrics were logged" in page.text
    assert "a: [1, 2" in page.text
    assert not page.all("svg")
    assert not page.all("video")


def test_a_folder_name_that_is_no_url_is_linked_by_its_escape(tmp_path: Path) -> None:
    add_video(tmp_path, 'x" onerror="y#?', 1, 0)
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert page.all("video")[0]["src"] == "video/x%22%20onerror%3D%22y%23%3F_gs-000001/000000.mp4"


def test_a_resumed_run_shows_its_own_iterations_only(tmp_path: Path) -> None:
    log = RunLogger(tmp_path, tensorboard=False)
    for step, loss in ((1, 1.0), (2, 9.0), (3, 9.0)):
        log.iteration(step, {"loss": loss})
    log.evaluation(3, {"loss": 9.0}, split="val")
    log.iteration(2, {"loss": 2.0})
    log.close()
    text = Page(write_report(tmp_path).read_text(encoding="utf-8")).text
    assert "1.00000 → 2.00000" in text
    assert "validation" not in text


def test_latents_and_unfinished_files_are_no_videos(tmp_path: Path) -> None:
    latents = tmp_path / "video" / "latents" / "latents_gs-000007"
    latents.mkdir(parents=True)
    (latents / "latent.pt").touch()
    (tmp_path / "video" / "samples_gs-000007").mkdir()
    (tmp_path / "video" / "samples_gs-000007" / ".000000.123.partial.mp4").touch()
    assert last_samples(tmp_path) is None


def test_missing_captions_and_kinds_leave_gaps(tmp_path: Path) -> None:
    add_video(tmp_path, "inputs", 9, 0)
    add_video(tmp_path, "samples", 8, 0)
    add_video(tmp_path, "samples", 8, 1)
    add_video(tmp_path, "inputs", 8, 1)
    add_captions(tmp_path, 8, "one")
    found = last_samples(tmp_path)
    assert found is not None
    assert found.iteration == 8
    assert [caption for caption, _ in found.rows] == ["one", None]
    assert [list(paths) for _, paths in found.rows] == [["samples"], ["inputs", "samples"]]


def test_a_chart_puts_greater_values_higher_and_breaks_at_gaps() -> None:
    svg = line_chart("Loss", [Series("a", "train", [(0, 1.0), (1, 2.0), (2, math.nan), (3, 3.0), (4, 1.5)])])
    curves = [re.findall(r"([\d.]+),([\d.]+)", each) for each in re.findall(r'points="([^"]*)"', svg)]
    assert [len(each) for each in curves] == [2, 2]
    heights = [float(y) for curve in curves for _, y in curve]
    assert heights[2] < heights[1] < heights[3] < heights[0]


@pytest.mark.parametrize("log_if_wide", [False, True])
@pytest.mark.parametrize("values", [[0.0], [5.0, 5.0], [-1e-9, 1e9], [1e-12, 1.0], [3.0, 90.5]])
def test_a_chart_of_any_range_is_drawn_inside_its_frame(values: list[float], log_if_wide: bool) -> None:
    svg = line_chart("x", [Series("a", "train", list(enumerate(values)), has_dots=True)], log_if_wide=log_if_wide)
    assert len(re.findall('class="grid"', svg)) >= 2
    for x, y in re.findall(r'cx="([-\d.]+)" cy="([-\d.]+)"', svg):
        assert 0 <= float(x) <= 720
        assert 0 <= float(y) <= 260
    assert len(re.findall("<circle", svg)) == len(values)


def test_no_finite_point_no_chart() -> None:
    assert line_chart("x", [Series("a", "train", [(1, math.nan)])]) == ""


def test_thinning_keeps_extremes_gaps_and_order() -> None:
    points = [(float(x), math.sin(x / 50)) for x in range(20_000)]
    points[7_777] = (7_777.0, 100.0)
    points[12_345] = (12_345.0, math.nan)
    thin = thin_out(points, buckets=100)
    assert len(thin) <= 400
    assert (7_777.0, 100.0) in thin
    assert [x for x, y in thin if math.isnan(y)] == [12_345.0]
    assert [x for x, _ in thin] == sorted(x for x, _ in thin)
