from __future__ import annotations

import re
from pathlib import Path

import matplotlib as mpl
import pytest

from reports import plot_front
from reports.canvas import VARIABLES, inline_svg, render
from reports.figures import draw_hypervolume, draw_pareto, draw_path, draw_slices, draw_widths
from reports.reading import read_run
from reports.series import hypervolume_view, pareto_view, path_view, slice_view
from reports.view import RunView
from reports.widths import LayerBar, width_map
from search_spaces import InvalidInput, SubnetSearchError
from tests.reports.synthetic import write_run


@pytest.fixture(scope="session")
def unfinished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "unfinished", evaluations=25, chosen=0)


@pytest.fixture(scope="session")
def pareto_svg(view: RunView) -> str:
    return inline_svg(draw_pareto(pareto_view(view)), "pareto")


def test_drawing_leaves_the_settings_of_matplotlib_alone(view: RunView) -> None:
    before = dict(mpl.rcParams)
    render(draw_widths(width_map(view.coverage, view.chosen[0])), "svg")
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_a_figure_is_the_same_bytes_every_time(view: RunView, kind: str) -> None:
    first, second = (render(draw_hypervolume(hypervolume_view(view, 3)), kind) for _ in range(2))
    assert first == second


def test_the_pareto_figure_names_everything_in_it(pareto_svg: str) -> None:
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", pareto_svg)
    assert {
        "uniform width (baseline), 7",
        "random (baseline), 12",
        "nsga2, 41",
        "limit",
        "full net",
        "chosen, before fine-tuning",
        "chosen, fine-tuned",
        "Multiply-adds (M MACs)",
        "Top-1 accuracy (%)",
        *"ABC",
    } <= set(texts)


def test_the_slice_curves_name_each_ranking_and_the_one_taken(view: RunView) -> None:
    drawn = inline_svg(draw_slices(slice_view(view)), "slices")
    texts = set(re.findall(r"<text[^>]*>([^<]*)</text>", drawn))
    assert {"taylor (taken)", "noise", "random", "Width kept in every layer (%)"} <= texts
    assert set(re.findall(r"#[0-9a-fA-F]{6}\b", drawn)) == set()


def test_the_path_names_what_is_before_and_after_joint_training(walked: Path) -> None:
    shown = path_view(read_run(walked))
    drawn = inline_svg(draw_path(shown), "path")
    texts = set(re.findall(r"<text[^>]*>([^<]*)</text>", drawn))
    assert {"as walked", "weights tuned here", "after joint training"} <= texts
    assert {"Multiply-adds (% of the whole net&apos;s)", "Multiply-adds (% of the whole net's)"} & texts
    assert set(re.findall(r"#[0-9a-fA-F]{6}\b", drawn)) == set()
    begun = shown._replace(steps=tuple(s._replace(tuned=False, evaluated=None) for s in shown.steps[:1]))
    texts = set(re.findall(r"<text[^>]*>([^<]*)</text>", inline_svg(draw_path(begun), "path")))
    assert texts.isdisjoint({"weights tuned here", "after joint training", "as evaluated"})


def test_an_inline_figure_refers_only_to_itself(pareto_svg: str) -> None:
    ids = re.findall(r'\sid="([^"]+)"', pareto_svg)
    references = re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', pareto_svg)
    assert len(ids) == len(set(ids))
    assert {first or second for first, second in references} <= set(ids)
    assert all(name.startswith("pareto-") for name in ids)
    assert "http" not in pareto_svg


def test_an_inline_figure_takes_its_colours_from_the_page(pareto_svg: str) -> None:
    assert set(re.findall(r"#[0-9a-fA-F]{6}\b", pareto_svg)) == set()
    assert (
        {"--ink", "--front", "--uniform"}
        <= set(re.findall(r"var\((--\w+)\)", pareto_svg))
        <= {*VARIABLES.values()}
    )


@pytest.mark.parametrize("path", ["$\\frac{", "<b>&amp;</b>", "-->", "x" * 300, "é"])
def test_layers_of_any_name_can_be_drawn(path: str) -> None:
    drawn = inline_svg(draw_widths([LayerBar(path, "knob", 3, 8, False)]), "widths")
    assert "<b>" not in drawn


@pytest.mark.slow
def test_a_very_deep_net_still_fits_its_figure() -> None:
    bars = [LayerBar(f"layer.{n}", "knob", n % 8 + 1, 8, n % 5 == 0) for n in range(230)]
    labels = re.findall(r">(layer\.\d+)<", inline_svg(draw_widths(bars), "widths"))
    assert 50 < len(labels) <= 110


@pytest.mark.parametrize(("ending", "magic"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")])
def test_fronts_of_several_runs_go_into_one_file(
    finished: Path, unfinished: Path, tmp_path: Path, ending: str, magic: bytes
) -> None:
    out = plot_front([finished, unfinished], out=tmp_path / "new" / f"front{ending}")
    assert out.read_bytes().startswith(magic)
    if ending == ".svg":
        assert {">finished<", ">unfinished<"} <= set(re.findall(r">\w+<", out.read_text()))


def test_a_single_run_is_drawn_with_its_baselines(finished: Path, tmp_path: Path) -> None:
    out = plot_front(finished, x="params", out=tmp_path / "front.svg")
    assert {"uniform width (baseline), 7", "Parameters (k)"} <= set(re.findall(r">([^<]+)<", out.read_text()))


def test_another_ending_is_refused(finished: Path) -> None:
    with pytest.raises(InvalidInput, match=r"\.png, \.svg or \.pdf, got 'front\.bmp'"):
        plot_front(finished, out="front.bmp")


def test_no_run_is_refused() -> None:
    with pytest.raises(InvalidInput, match="at least one run folder"):
        plot_front([])


def test_values_a_run_does_not_have_are_refused(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no values of 'latency_ms'"):
        plot_front(finished, x="latency_ms", out=tmp_path / "front.png")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_named(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SubnetSearchError, match=r"cannot write .*front\.png"):
        plot_front(finished, out=tmp_path / "file" / "front.png")
