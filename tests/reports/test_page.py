from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from scipy.stats import kendalltau

from reports import read_run, write_report
from reports.account import facts, notes, summary
from reports.chosen import caption, columns, rebuild_command, reranking, subnet
from reports.page import build_page
from reports.series import pareto_view, path_view
from reports.units import text
from search_spaces import SubnetSearchError
from subnet_search.record.images import Images
from subnet_search.record.run import create_run, open_run
from tests.reports.synthetic import SETTINGS, write_path, write_run

HOSTILE = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>--></svg></pre>{{ 7 * 7 }}"


class Page(HTMLParser):
    """The elements, attributes, links and visible words of a page."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: Counter[str] = Counter()
        self.links: list[str] = []
        self.ids: list[str] = []
        self.words = ""
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.words += " " * (tag == "br")
        self.attributes.update(name for name, _ in attrs)
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]
        self.ids += [value or "" for name, value in attrs if name == "id"]

    def handle_data(self, data: str) -> None:
        self.words += data.replace("\u00a0", " ")


@pytest.fixture(scope="session")
def report(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(finished, tmp_path_factory.mktemp("out") / "report.html")


@pytest.fixture(scope="session")
def page(report: Path) -> Page:
    return Page(report.read_text("utf-8"))


def test_the_page_needs_no_network(report: Path, page: Page) -> None:
    content = report.read_text("utf-8")
    assert "default-src 'none'" in content
    assert "http://" not in content
    assert "https://" not in content
    assert page.tags.keys().isdisjoint({"script", "img", "iframe", "object", "embed"})
    assert [link for link in page.links if ":" in link] == ["data:,"]


def test_every_link_leads_somewhere(report: Path, page: Page) -> None:
    within = {link[1:] for link in page.links if link.startswith("#")}
    assert within <= set(page.ids)
    files = {link for link in page.links if link[0] != "#" and link != "data:,"}
    assert all((report.parent / unquote(link)).is_file() for link in files)
    assert sum(link.endswith("net.pt2") for link in files) == 3
    assert sum(link.endswith(".png") for link in files) == 8


def test_every_id_of_the_page_is_its_own(page: Page) -> None:
    assert len(page.ids) == len(set(page.ids))


def test_every_figure_has_a_description(report: Path) -> None:
    content = report.read_text("utf-8")
    described = re.findall(r'role="img" aria-label="([^"]{40,})"', content)
    assert len(described) == content.count("<svg") == 8


def test_the_page_says_what_the_record_says(finished: Path, page: Page) -> None:
    run = read_run(finished)
    for chosen in run.chosen:
        numbers = (*chosen.before.values(), *chosen.after.values(), *chosen.test.values())
        assert all(f"{number:.2f} %" in page.words for number in numbers)
        assert rebuild_command("runs/finished", chosen.key) in page.words
    for told in ("2.15.0", "A processor", "taylor", "it writes the model's output", "layer3.2.conv2"):
        assert told in page.words
    assert SETTINGS in page.words


def test_the_summary_is_one_sentence_with_numbers(finished: Path) -> None:
    run = read_run(finished)
    share = 100 * run.chosen[0].costs["macs"] / run.full["macs"]
    told = summary(run).replace("\u00a0", " ")
    assert told.startswith(
        "From subnet_search.models:resnet20 (1.5 × 10¹¹ sub-nets) on digits, 60 sub-nets were evaluated"
    )
    assert "(7 of uniform width, 12 drawn at random, 41 asked for by nsga2)" in told
    assert f"A needs {share:.1f} % of the full net's 40.6 M MACs" in told
    assert told.endswith(f"{run.chosen[0].test['top1_percent']:.2f} % top-1 on test (full net: 91.83 %).")


def test_the_best_uniform_net_needs_no_more_macs(finished: Path, page: Page) -> None:
    run = read_run(finished)
    uniform = [s.values for s in run.seen if s.searcher == "uniform"]
    for chosen in run.chosen:
        fitting = [v["top1_percent"] for v in uniform if v["macs"] <= chosen.costs["macs"]]
        assert not fitting or f"{max(fitting):.2f} %" in page.words


@pytest.fixture(scope="session")
def measured_page(measured: Path, tmp_path_factory: pytest.TempPathFactory) -> Page:
    folder = shutil.copytree(measured, tmp_path_factory.mktemp("runs") / "measured")
    with open_run(folder) as run:
        classes = [f"class {n}" for n in range(1000)]
        run.write_json("splits.json", run.read_json("splits.json") | {"classes": classes})
        run.write_json("front.json", run.read_json("front.json") | {"state": "cut short"})
        stages = [{"stage": "train", "amount": 12, "asked": 30, "unit": "epochs"}, {"stage": "test"}]
        run.write_json("plan.json", {"minutes": 3, "stages": stages})
    return Page(write_report(folder).read_text("utf-8"))


@pytest.mark.slow
def test_latency_and_metrics_have_figures_prices_and_columns(measured: Path, measured_page: Page) -> None:
    run, words = read_run(measured), measured_page.words
    assert "Recall against latency" in words
    assert "one more ms buys" in words
    assert "Latency along the front is known to ±0.040 ms (median)" in words
    assert "Best uniform width of no more latency" in words
    heads = [column.heading for column in columns(run)]
    assert heads == [
        *[("Top-1", when) for when in ("before", "fine-tuned", "on test")],
        ("Latency", ""),
        *[("Recall", when) for when in ("before", "fine-tuned", "on test")],
    ]
    for chosen in run.chosen:
        assert f"{chosen.after['latency_ms']:.3f} ms" in words


@pytest.mark.slow
def test_a_latency_that_only_the_search_measured_has_its_spread(measured: Path) -> None:
    run = read_run(measured)
    values = {when: {"top1_percent": 90.0} for when in ("before", "after", "test")}
    [one] = chosen = (replace(run.chosen[0], **values),)
    latency, spread = subnet(replace(run, chosen=chosen, coverage={}), one, ".", {})["measured"][3]
    assert latency == text("latency_ms", one.searched["latency_ms"])
    assert spread.replace("\u00a0", " ") == "± 0.040 ms"


@pytest.mark.slow
def test_chosen_ones_that_are_equally_fast_as_far_as_anybody_can_tell_are_named(
    measured: Path, tmp_path: Path
) -> None:
    folder, run = tmp_path / "again", read_run(measured)
    assert "not told apart" not in caption(run)
    first, second, *_ = (chosen.key for chosen in run.chosen)
    shutil.copytree(measured, folder)
    with open_run(folder) as again:
        again.write_json("latency_again.json", {"ties": [[second, first], ["gone", first]]})
    told = caption(read_run(folder))
    assert told.endswith("not told apart in latency: A and B.")


@pytest.mark.slow
def test_classes_a_time_plan_and_a_search_cut_short_are_told(measured_page: Page) -> None:
    words = measured_page.words
    assert "class 0, class 1, class 2" in words
    assert "class 11, … (1,000 in all)" in words
    assert "class 12" not in words
    assert "less was done than the recipe asks for: train 12 of 30 epochs." in words
    assert "last budget3 minutes" in words
    assert "The search was cut short" in words


def test_the_price_table_says_what_the_front_says(finished: Path, page: Page) -> None:
    steps = pareto_view(read_run(finished)).steps
    for step in steps:
        assert f"+{text('macs', step.extra_cost)}".replace("\u00a0", " ") in page.words
        assert f"+{step.gain:.2f} points" in page.words
    assert "its knee (ringed)" in page.words
    assert f"{100 / 359:.2f} points, so steps of a few images can be chance" in page.words


def test_the_slice_curves_are_told(page: Page) -> None:
    words = page.words
    assert "in the order of taylor" in words
    assert "reach 64.67 % on average, 60.50 % by noise, 42.33 % by random." in words
    assert "359 images of search-validation" in words
    assert "62.50 %" in words


@pytest.mark.slow
def test_a_run_ranked_without_a_comparison_says_so(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", evaluations=8, chosen=1)
    with open_run(folder) as run:
        run.write_json("ranking.json", {"ranker": "taylor", "weights": "0" * 64, "order": {}})
    told = Page(write_report(folder).read_text("utf-8")).words
    assert "No slice curves: run 'run' was ranked by taylor alone, without a comparison." in told
    assert not (folder / "figures" / "slices.png").exists()


@pytest.mark.slow
def test_a_path_is_told_and_drawn(walked: Path, tmp_path: Path) -> None:
    content = write_report(walked, tmp_path / "report.html").read_text("utf-8")
    page = Page(content)
    assert "#path" in page.links
    assert "path" in page.ids
    assert len(page.ids) == len(set(page.ids))
    assert (tmp_path / "figures" / "path.png").is_file()
    steps = path_view(read_run(walked)).steps
    assert (
        f"The path has 5 nested sub-nets, the smallest with {steps[-1].macs_percent:.1f} % of" in page.words
    )
    assert "finding it took 5,000 image forwards." in page.words
    assert "At a diamond the weights were tuned" in page.words
    assert "After joint training: 3 of 5 sub-nets, evaluated by the search" in page.words
    table = content[content.index('id="path"') : content.index('id="elastic"')]
    assert "<code>layer3.0.conv1</code></td><td>56 → 48<" in table
    assert "<code>layer1.1</code></td><td>block skipped, tuned<" in table
    assert table.count("<tr><td") == 5


@pytest.mark.slow
def test_a_path_under_way_says_so_and_tells_no_joint_training(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", evaluations=0)
    write_path(folder, evaluated=0, complete=False)
    words = Page(write_report(folder).read_text("utf-8")).words
    assert "The path has 5 nested sub-nets so far" in words
    assert "fter joint training" not in words


@pytest.mark.slow
def test_evaluations_of_a_path_that_was_not_trained_jointly_are_not_said_to_be(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", evaluations=8, chosen=0)
    write_path(folder)
    (folder / "joined.safetensors").unlink()
    words = Page(write_report(folder).read_text("utf-8")).words
    assert "As evaluated: 3 of 5" in words
    assert "fter joint training" not in words


@pytest.mark.slow
def test_a_path_without_costs_says_so(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", evaluations=0)
    write_path(folder, evaluated=0)
    (folder / "costs.json").unlink()
    words = Page(write_report(folder).read_text("utf-8")).words
    assert "No figure of the path: run 'run' has a path, but not the space and the costs" in words
    assert not (folder / "figures" / "path.png").exists()


def test_a_run_without_a_path_has_no_such_section(page: Page) -> None:
    assert "path" not in page.ids
    assert "#path" not in page.links


def test_the_ranking_that_was_best_is_named_among_the_methods(finished: Path) -> None:
    run = read_run(finished)
    best = replace(run, settings={**run.settings, "rank": {"ranker": "best"}})
    told = dict(dict(facts(best))["Method"])
    assert told["Ranking"] == "taylor, the best of its slice curves"
    assert dict(dict(facts(run))["Method"])["Ranking"] == "taylor"


def test_the_order_after_tuning_is_told(page: Page) -> None:
    assert "3 chosen sub-nets, too few to tell (4 are needed)" in page.words
    assert "no chosen sub-net is beaten" in page.words


def test_a_correlation_is_told_with_its_number_and_chance(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", evaluations=40, chosen=5))
    told = reranking(run, {})["sentence"].replace("\u00a0", " ")
    before, after = zip(
        *((c.before["top1_percent"], c.after["top1_percent"]) for c in run.chosen), strict=True
    )
    assert f"Kendall's tau {kendalltau(before, after).statistic:.2f} (n = 5, p = 0.017)" in told


def test_hostile_names_stay_text(page: Page, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", evaluations=8, chosen=1)
    with open_run(folder) as run:
        coverage = run.read_json("coverage.json")
        coverage["groups"][0] |= {"writers": [HOSTILE, "conv1"], "readers": [HOSTILE]}
        coverage["fixed"] = [{"path": HOSTILE, "reason": HOSTILE}]
        run.write_json("coverage.json", coverage)
        run.write_json("device.json", {HOSTILE: HOSTILE, "runtimes": [HOSTILE]})
        run.write("settings.toml", SETTINGS + f"\n[report]\ntitle = '''{HOSTILE}'''\n")
        run.write(f'subnets/{read_run(folder).chosen[0].key}/<i>&".bin', b"")
    hostile = Page(write_report(folder).read_text("utf-8"))
    assert hostile.tags.keys() <= page.tags.keys()
    assert hostile.attributes.keys() <= page.attributes.keys()
    assert hostile.words.count("<script>alert(1)</script>") > 5
    assert hostile.words.count("{{ 7 * 7 }}") > 5
    assert all((folder / unquote(link)).exists() for link in hostile.links if link.startswith("subnets"))


@pytest.mark.parametrize(
    ("evaluations", "chosen", "tuned", "sentences"),
    [
        (
            0,
            0,
            False,
            ["no sub-net has been evaluated yet", "No sub-net has been chosen yet", "nothing to show"],
        ),
        pytest.param(
            *(1, 0, False, ["1 sub-net was evaluated", "a hypervolume needs two evaluations"]),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            *(5, 0, False, ["nothing to compare it with", "No sub-net has been chosen yet"]),
            marks=pytest.mark.slow,
        ),
        (8, 1, False, ["have not been fine-tuned yet", "not yet"]),
    ],
)
def test_what_is_missing_is_said(
    tmp_path: Path, evaluations: int, chosen: int, tuned: bool, sentences: list[str]
) -> None:
    page, _ = build_page(read_run(write_run(tmp_path / "run", evaluations, chosen, tuned)))
    assert [sentence for sentence in sentences if sentence not in page] == []


def test_a_run_that_has_only_settings_has_a_report(tmp_path: Path) -> None:
    create_run(tmp_path / "run", SETTINGS).close()
    assert "The network has not been converted yet" in write_report(tmp_path / "run").read_text()


def test_damaged_files_of_chosen_subnets_are_said(finished: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(finished, tmp_path / "run")
    assert not any("do not use" in note for note in notes(read_run(folder)))
    file = next(folder.glob("subnets/*/net.pt2"))
    file.write_bytes(file.read_bytes()[:-1])
    assert f"Changed after being written, do not use: {file.relative_to(folder)}." in notes(read_run(folder))


@pytest.mark.parametrize("time_s", [1e15, -1e15, -3600.0])
def test_a_clock_that_is_wrong_does_not_keep_a_report_from_being_written(
    time_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with create_run(tmp_path / "run", SETTINGS) as run:
        run.event("begin", stage="train")
        monkeypatch.setattr("time.time", lambda: time_s)
        run.event("end", stage="train", seconds=3.5)
    words = Page(build_page(read_run(tmp_path / "run"), [])[0]).words
    assert re.search(r"Last event\s*(1969-12-31 23:00 UTC|.*says the clock of that machine)", words)


def test_failures_and_failed_proofs_are_said_first(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", evaluations=20, chosen=1)
    with open_run(folder) as run:
        place = f"subnets/{read_run(folder).chosen[0].key}/proof.json"
        run.write_json(place, run.read_json(place) | {"passed": False})
        run.journal.ask(20, read_run(folder).chosen[0].config, "c0ffee", "nsga2")
        run.journal.failed(20, "out of memory")
    told = notes(read_run(folder))
    assert told == [
        "1 evaluation failed: out of memory (1).",
        "The proof of A failed: do not use these files.",
    ]


def test_what_racing_stopped_and_saved_is_said_and_shown_nowhere_else(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", evaluations=20, chosen=1)
    with open_run(folder) as run:
        space = read_run(folder).space
        assert space is not None
        config = space.uniform(0.33)
        for n, images in ((20, Images(60, 359, 40, rival="a1")), (21, Images(359, 359, 40))):
            run.journal.ask(n, config, "c0ffee", "nsga2")
            values = {"top1_percent": 99.0, "macs": 1.0, "params": 1.0}
            source = "measured" if images.in_full else "predicted"
            run.journal.result(n, values, source=source, images=images)
    told = notes(read_run(folder))
    assert "1 sub-net more was looked at only in part" in told[0]
    assert "cost 499 images, those that set batch norms included, instead of 798 (63 %)" in told[0]
    assert len(read_run(folder).seen) == 21


@pytest.mark.slow
def test_a_report_goes_into_the_run_folder_and_can_be_written_again(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", evaluations=8, chosen=1)
    first = write_report(folder)
    content = first.read_bytes()
    assert first == folder / "report.html"
    assert {file.name for file in (folder / "figures").iterdir()} == {
        "pareto.png",
        "pareto-2.png",
        "hypervolume.png",
        "slices.png",
        "widths-A.png",
    }
    assert write_report(folder).read_bytes() == content


def test_a_report_that_cannot_be_written_says_where(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", evaluations=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(SubnetSearchError, match="cannot write"):
        write_report(folder, tmp_path / "file" / "report.html")


def test_the_command_survives_a_shell() -> None:
    assert (
        rebuild_command("runs/my run", "0123456789ab")
        == "subnet-search export 'runs/my run' --key 0123456789ab"
    )


def test_importing_reports_loads_neither_torch_nor_matplotlib() -> None:
    code = "import reports, sys; print(sorted({'torch', 'matplotlib'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
