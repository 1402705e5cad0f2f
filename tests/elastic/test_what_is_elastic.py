"""Which freedoms conversion finds, and what it says about the rest."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import weight_norm
from torch.nn.utils.prune import l1_unstructured
from torchvision.models import resnet18
from torchvision.ops import StochasticDepth

from search_spaces import InvalidInput
from subnet_search import small_models
from subnet_search.elastic.convert import make_elastic
from subnet_search.elastic.extraction import extract
from subnet_search.elastic.graph import UntraceableModelError
from subnet_search.elastic.knobs import EmptySpaceError, why_whole, width_choices
from subnet_search.elastic.operations.graph_form import RunsGraph
from subnet_search.elastic.statistics import recalibrate
from subnet_search.elastic.supernet import Supernet
from subnet_search.settings import ElasticSettings
from tests.toys import TOYS, Branching, Gate, make_toy

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
OWN_CLASSES = ElasticSettings(form="own classes")


def convert(name: str, **settings: object) -> Supernet:
    return make_elastic(make_toy(name), X, ElasticSettings(**{"step": 4, **settings}))


def reason(supernet: Supernet, path: str) -> str:
    return next(entry["reason"] for entry in supernet.coverage["fixed"] if entry["path"] == path)


def test_residual_streams_are_one_group_and_inner_channels_another() -> None:
    supernet = convert("residual")
    assert supernet.groups["stem.0"].writers == ("stem.0", "blocks.0.conv2", "blocks.1.conv2")
    assert supernet.groups["blocks.0.conv1"].writers == ("blocks.0.conv1",)
    assert "head" in supernet.groups["stem.0"].readers


def test_only_blocks_are_skippable_not_their_container() -> None:
    assert convert("residual").blocks == ("blocks.0", "blocks.1")


def test_a_block_inside_a_skipped_block_means_nothing() -> None:
    supernet = convert("nested")
    assert supernet.blocks == ("outer", "outer.inner")
    config = supernet.space.canonical({**supernet.space.smallest(), "outer": 0, "outer.inner": 0})
    assert config["outer.inner"] == 1
    assert config["outer.inner.conv1"] == 24


def test_small_image_resnets_have_elastic_streams_across_padded_shortcuts() -> None:
    supernet = make_elastic(small_models.resnet20(), torch.zeros(1, 3, 32, 32), ElasticSettings(step=4))
    streams = [supernet.groups[name] for name in ("conv1", "layer2.0.conv2", "layer3.0.conv2")]
    assert [group.size for group in streams] == [16, 32, 64]
    assert streams[1].writers[1] == "layer2.0.shortcut"
    assert [entry["path"] for entry in supernet.coverage["fixed"]] == ["linear"]
    assert len(supernet.blocks) == 7


def test_a_few_wide_groups_of_a_convolution_get_thinner() -> None:
    groups = convert("few groups").groups
    assert (groups["stem.0"].units, groups["stem.0"].unit_channels) == (16, 2)
    assert (groups["grouped.0"].units, groups["grouped.0"].unit_channels) == (12, 2)
    assert groups["stem.0"].writers == ("stem.0",)
    supernet = convert("few groups")
    config = supernet.space.canonical({**supernet.space.largest(), "stem.0": 16, "grouped.0": 8})
    conv = extract(supernet, config, X, recalibrate(supernet, config, [(X, torch.zeros(2))])).grouped[0]
    assert (conv.in_channels, conv.out_channels, conv.groups) == (16, 8, 2)
    assert conv.weight.shape == (8, 8, 3, 3)


def test_grouped_convolution_drops_whole_groups() -> None:
    group = convert("inverted").groups["project.0"]
    assert (group.units, group.unit_channels, group.choices) == (4, 4, (4, 8, 12, 16))
    assert set(group.writers) == {"project.0", "grouped.0"}


def test_a_unit_counts_channels_of_the_first_writer() -> None:
    supernet = convert("multiplied")
    group = supernet.groups["first.0"]
    assert (group.units, group.unit_channels, group.size) == (12, 1, 12)
    assert set(group.writers) == {"first.0", "twice"}


def test_a_concatenated_branch_keeps_its_own_width() -> None:
    supernet = convert("concatenated")
    assert {"left.0", "right.0", "extra.0", "join.0"} == set(supernet.groups)
    assert "join.0" in supernet.groups["right.0"].readers


def test_modules_that_share_a_parameter_stay_whole() -> None:
    supernet = convert("tied weights")
    assert set(supernet.groups) == {"mid.0"}
    assert "shares a parameter with" in reason(supernet, "first")


def test_a_module_that_branches_on_values_stays_whole_and_is_listed() -> None:
    supernet = convert("partly opaque")
    assert set(supernet.groups) == {"stem.0", "last.0"}
    assert "cannot be traced" in reason(supernet, "moody")
    assert "moody (Branching)" in reason(supernet, "mid.0")


def test_a_hard_coded_size_freezes_what_flows_into_it() -> None:
    supernet = convert("hard-coded", form="own classes")
    assert set(supernet.groups) == {"stem.0"}
    assert "hard-coded size" in reason(supernet, "last.0")


def test_a_forward_that_refuses_fewer_channels_is_found_by_trying() -> None:
    supernet = convert("checked", form="own classes")
    assert set(supernet.groups) == {"stem.0"}
    assert "wants 16 channels" in reason(supernet, "mid.0")


def test_a_layer_that_no_rule_knows_is_listed_with_its_kind() -> None:
    supernet = make_elastic(normed_in_groups(), X, OWN_CLASSES)
    assert set(supernet.groups) == {"2"}
    assert reason(supernet, "0") == "no rule for 1 (GroupNorm)"
    assert reason(supernet, "1") == "no rule for GroupNorm"


def normed_in_groups() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 1), nn.GroupNorm(4, 16), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 4, 1)
    ).eval()


@pytest.mark.parametrize(
    ("toy", "groups"),
    [
        ("hard-coded", {"stem.0": 16, "last.0": 8}),
        ("checked", {"stem.0": 16, "mid.0": 16}),
        ("chunked", {"stem.0": 8, "stem.0[1]": 8, "side.0": 8, "last.0": 16}),
    ],
)
def test_the_graph_runs_where_it_can_shrink_what_the_forward_cannot(toy: str, groups: dict[str, int]) -> None:
    supernet = convert(toy)
    assert {name: group.size for name, group in supernet.groups.items()} == groups
    assert isinstance(supernet.model, RunsGraph)
    assert [entry["path"] for entry in supernet.coverage["fixed"]] == ["head"]
    with supernet.subnet(supernet.space.smallest()):
        assert supernet(X).shape == (2, 5)


@pytest.mark.parametrize("toy", sorted(TOYS.keys() - {"hard-coded", "checked", "chunked"}))
def test_networks_keep_their_own_classes_where_the_graph_gains_nothing(toy: str) -> None:
    assert not isinstance(convert(toy).model, RunsGraph)


def test_the_graph_drops_whole_groups_of_a_group_norm() -> None:
    supernet = make_elastic(normed_in_groups(), X, ElasticSettings(step=4))
    assert {name: (g.units, g.unit_channels) for name, g in supernet.groups.items()} == {
        "0": (4, 4),
        "2": (16, 1),
    }


def test_an_empty_space_is_an_error_that_names_the_reasons() -> None:
    with pytest.raises(EmptySpaceError, match=r"nothing in Sequential .* the network's output"):
        make_elastic(nn.Sequential(nn.Conv2d(3, 16, 1), nn.ReLU()), X)


def test_a_root_that_cannot_be_traced_is_refused_with_a_way_out() -> None:
    with pytest.raises(
        UntraceableModelError, match=r"Branching.forward cannot be traced: .*module of its own"
    ):
        make_elastic(Branching(), X)


def test_an_example_of_wrong_size_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"does not run on the example of shape \[\(1, 4, 8, 8\)\]"):
        make_elastic(make_toy("residual"), torch.zeros(1, 4, 8, 8))


def test_a_random_model_is_refused() -> None:
    class Random(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(F.dropout(self.a(x), 0.5, training=True))

    with pytest.raises(InvalidInput, match="must be deterministic"):
        make_elastic(Random(), X)


def test_a_model_that_answers_nan_is_refused_for_that() -> None:
    model = nn.Sequential(nn.Conv2d(X.shape[1], 16, 3), nn.Conv2d(16, 4, 3))
    model[0].weight.data.fill_(float("nan"))
    with pytest.raises(InvalidInput, match="answers the example with NaN or infinity; mend its weights"):
        make_elastic(model, X)


@pytest.mark.parametrize("form", ["tuple", "dict"])
def test_examples_may_be_tuples_and_dicts(form: str) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Conv2d(3, 16, 1), nn.Conv2d(3, 16, 1), nn.Linear(16, 2)

        def forward(self, left: Tensor, right: Tensor | None = None, scale: float = 2.0) -> Tensor:
            return self.head((self.a(left) + self.b(right) * scale).mean([2, 3]))

    example = (X, X) if form == "tuple" else {"right": X, "left": X}
    supernet = make_elastic(Two(), example)
    assert set(supernet.groups) == {"a"}
    with supernet.subnet(supernet.space.smallest()):
        assert supernet(X, X).shape == (2, 2)


def test_excluded_layers_and_blocks_keep_their_full_width() -> None:
    supernet = convert("residual", exclude=("blocks.0",))
    assert set(supernet.groups) == {"blocks.1.conv1"}
    assert supernet.blocks == ("blocks.1",)
    assert reason(supernet, "blocks.0.conv1") == "excluded by the settings"


def test_only_included_layers_are_elastic() -> None:
    assert set(convert("residual", include=("blocks.*.conv1",), depth=False).groups) == {
        "blocks.0.conv1",
        "blocks.1.conv1",
    }


def test_tied_groups_share_one_knob_and_act_while_either_acts() -> None:
    supernet = convert("residual", tie=(("blocks.*.conv1",),))
    assert [k.name for k in supernet.space.knobs if k.kind == "width"] == ["stem.0", "blocks.0.conv1"]
    config = supernet.space.canonical({**supernet.space.smallest(), "blocks.0.conv1": 4, "blocks.1": 1})
    assert config["blocks.0.conv1"] == 4
    with supernet.subnet(config):
        assert supernet(X).shape == (2, 5)


def test_groups_of_different_width_cannot_be_tied() -> None:
    with pytest.raises(InvalidInput, match="tied groups must offer the same widths"):
        convert("residual", tie=(("stem.0", "blocks.0.conv1"),))


def test_width_or_depth_alone() -> None:
    assert {k.kind for k in convert("residual", width=False).space.knobs} == {"depth"}
    assert {k.kind for k in convert("residual", depth=False).space.knobs} == {"width"}


@pytest.mark.parametrize(
    ("units", "per_unit", "settings", "expected"),
    [
        (64, 1, {}, (8, 16, 24, 32, 40, 48, 56, 64)),
        (32, 1, {}, (8, 16, 24, 32)),
        (28, 1, {}, (4, 8, 12, 16, 20, 24, 28)),
        (20, 1, {"step": 8}, (8, 16, 20)),
        (8, 1, {}, (4, 8)),
        (8, 1, {"step": 8}, (8,)),
        (8, 1, {"steps": {"": 8}}, (4, 8)),
        (4, 1, {}, (4,)),
        (64, 1, {"min_share": 0.5}, (32, 40, 48, 56, 64)),
        (32, 4, {}, tuple(range(16, 129, 8))),
        (4, 16, {"step": 8}, (16, 32, 48, 64)),
        (64, 1, {"groups_per_layer": 4}, (16, 32, 48, 64)),
        (64, 1, {"groups_per_layer": 4, "min_share": 0.5}, (32, 48, 64)),
        (2, 1, {"groups_per_layer": 4}, (1, 2)),
        (64, 1, {"width": False}, (64,)),
    ],
)
def test_width_choices(
    units: int, per_unit: int, settings: dict[str, object], expected: tuple[int, ...]
) -> None:
    assert width_choices(units, per_unit, ElasticSettings(**settings)) == expected


@pytest.mark.parametrize(
    ("units", "per_unit", "settings", "hint"),
    [
        (6, 1, {"step": 8}, "; a step of 4 would offer 4"),
        (4, 1, {}, "; a step of 2 would offer 2"),
        (8, 2, {"step": 32}, "; a step of 8 would offer 8"),
        (3, 1, {}, "; a step of 2 would offer 2"),
        (12, 1, {"min_share": 0.7, "step": 16}, "; a step of 2 would offer 10"),
        (1, 16, {}, ""),
        (8, 1, {"width": False}, ""),
        (8, 1, {"groups_per_layer": 1}, ""),
    ],
)
def test_what_is_too_narrow_for_the_step_says_which_step_would_do(
    units: int, per_unit: int, settings: dict[str, object], hint: str
) -> None:
    told = ElasticSettings(**settings)
    assert len(width_choices(units, per_unit, told)) == 1
    assert (
        why_whole(units, per_unit, told)
        == f"no smaller width: {units} unit(s) of {per_unit} channel(s){hint}"
    )


def test_knobs_of_a_squeeze_and_excite_branch() -> None:
    net = nn.Sequential(nn.Conv2d(3, 32, 1), Gate(32), nn.Conv2d(32, 4, 1))
    supernet = make_elastic(net, X, ElasticSettings(step=2))
    assert supernet.groups["0"].writers == ("0", "1.up")
    assert supernet.groups["1.down"].choices == (2, 4, 6, 8)


class OwnConv(nn.Conv2d):
    """Adds nothing but a name."""


class OwnNorm(nn.BatchNorm2d):
    """Adds nothing but a name."""


class OtherNorm(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


def classifier(*layers: nn.Module, width: int = 16) -> nn.Module:
    pooled = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 5))
    return nn.Sequential(*layers, *pooled).eval()


def test_sub_classes_that_compute_as_torchs_own_are_as_elastic_and_keep_their_class() -> None:
    net = classifier(OwnConv(3, 16, 1), OwnNorm(16), nn.ReLU(), OwnConv(16, 16, 1))
    supernet = make_elastic(net, X)
    assert set(supernet.groups) == {"0", "3"}
    assert set(supernet.batch_norms) == {"1"}
    small = extract(supernet, supernet.space.smallest())
    assert [type(m) for m in small.modules()] == [type(m) for m in net.modules()]
    assert small[0].weight.shape[0] == 4


def test_a_batch_norm_whose_statistics_cannot_be_set_is_refused() -> None:
    for norm, settings in ((OtherNorm(16), OWN_CLASSES), (nn.SyncBatchNorm(16), ElasticSettings())):
        with pytest.raises(InvalidInput, match=rf"1 is a {type(norm).__name__}, whose statistics"):
            make_elastic(classifier(nn.Conv2d(3, 16, 1), norm, nn.Conv2d(16, 16, 1)), X, settings)
    with pytest.raises(UntraceableModelError, match="batch_norm is a batch norm whose statistics cannot be"):
        make_elastic(classifier(nn.Conv2d(3, 16, 1), nn.SyncBatchNorm(16)), X, ElasticSettings(form="graph"))


def test_the_graph_sets_the_statistics_of_a_batch_norm_with_a_forward_of_its_own() -> None:
    supernet = make_elastic(classifier(nn.Conv2d(3, 16, 1), OtherNorm(16), nn.Conv2d(16, 16, 1)), X)
    assert set(supernet.groups) == {"0", "2"}
    assert set(supernet.batch_norms) == {"1"}
    config = supernet.space.smallest()
    statistics = recalibrate(supernet, config, [X, 2 * X])
    assert statistics.values["1.running_mean"].shape == (4,)
    net = extract(supernet, config, X, statistics)
    with supernet.eval().subnet(config, statistics):
        torch.testing.assert_close(net.eval()(X), supernet(X))


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("change", [weight_norm, lambda conv: l1_unstructured(conv, "weight", 0.5)])
def test_a_layer_whose_weight_is_computed_stays_whole(change: Callable[[nn.Module], nn.Module]) -> None:
    supernet = make_elastic(with_a_computed_weight(change), X, OWN_CLASSES)
    assert set(supernet.groups) == {"2"}
    assert "no rule for 1 (" in reason(supernet, "0")


def with_a_computed_weight(change: Callable[[nn.Module], nn.Module]) -> nn.Module:
    net = classifier(nn.Conv2d(3, 16, 1), change(nn.Conv2d(16, 16, 1)), nn.Conv2d(16, 16, 1))
    with torch.no_grad():
        net(X)  # leaves a computed weight that can be copied
    net[1].__dict__.update({n: t.detach() for n, t in net[1].__dict__.items() if isinstance(t, Tensor)})
    return net


@pytest.mark.filterwarnings("ignore:The tensor attribute .* was assigned during export:UserWarning")
def test_the_graph_slices_a_pruning_mask_with_its_weight() -> None:
    net = with_a_computed_weight(lambda conv: l1_unstructured(conv, "weight", 0.5))
    supernet = make_elastic(net, X)
    assert set(supernet.groups) == {"0", "1", "2"}
    small = extract(supernet, supernet.space.smallest())
    shapes = {name: tuple(t.shape[:2]) for name, t in small.state_dict().items()}
    assert shapes["1.weight_orig"] == shapes["1.weight_mask"] == (4, 4)


def test_a_model_that_cannot_be_copied_is_refused() -> None:
    net = classifier(nn.Conv2d(3, 16, 1))
    net.note = net[0].weight * 1
    with pytest.raises(InvalidInput, match="Sequential cannot be copied: Only Tensors created explicitly"):
        make_elastic(net, X)


def test_pooling_along_the_channels_keeps_them() -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.pool = nn.Linear(8, 16), nn.MaxPool1d(3, stride=1, padding=1)
            self.second, self.head = nn.Linear(16, 16), nn.Linear(16, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.second(self.pool(self.first(x.flatten(1, 2)))).mean(1))

    supernet = make_elastic(Pooled().eval(), X)
    assert set(supernet.groups) == {"second"}
    assert reason(supernet, "first") == "pool works along the axis of the channels"


def test_stochastic_depth_alone_is_no_block() -> None:
    class Dropped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.drop = nn.Conv2d(16, 16, 1), StochasticDepth(0.5, "row")

        def forward(self, x: Tensor) -> Tensor:
            return x + self.drop(self.conv(x))

    assert make_elastic(classifier(nn.Conv2d(3, 16, 1), Dropped()), X).blocks == ("1",)


def test_a_block_that_cannot_be_skipped_is_listed() -> None:
    class Packing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convs = nn.Sequential(nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1))

        def forward(self, x: Tensor, twice: bool) -> Tensor:
            return self.convs(x.contiguous()) * (2 if twice else 1) + x

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.block, self.head = nn.Conv2d(3, 16, 1), Packing(), nn.Linear(16, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.block(self.stem(x).transpose(2, 3), True)
            return self.head(x.view(-1, 16, 64).mean(2))  # of what is not turned

    supernet = make_elastic(Net().eval(), X, OWN_CLASSES)
    assert supernet.blocks == ()
    assert "fails when it shrinks" in reason(supernet, "block")
    assert make_elastic(Net().eval(), X).blocks == ("block",)  # in the graph it is reshaped


def test_what_only_training_calls_is_listed_and_what_it_reads_stays_whole() -> None:
    supernet = convert("auxiliary")
    assert set(supernet.groups) == {"last.0"}
    assert reason(supernet, "second") == "not called in evaluation mode"
    assert "fails when it shrinks" in reason(supernet, "stem.0")


@pytest.mark.parametrize("name", ["include", "exclude"])
def test_patterns_that_name_nothing_are_refused(name: str) -> None:
    with pytest.raises(InvalidInput, match=rf"{name}='sten' matches no module .*did you mean 'stem'"):
        convert("residual", **{name: ("sten",)})


def test_ties_that_share_a_group_make_one_knob() -> None:
    layers = [nn.Conv2d(3, 16, 1), *(nn.Conv2d(16, 16, 1) for _ in range(3))]
    supernet = make_elastic(classifier(*layers), X, ElasticSettings(tie=(("1", "2"), ("0", "1"))))
    assert supernet.space.names == ("0", "3")
    assert {supernet.knob_of[name] for name in ("0", "1", "2")} == {"0"}


def test_what_is_no_model_and_an_empty_example_are_refused() -> None:
    with pytest.raises(InvalidInput, match=r"must be a torch.nn.Module, got function"):
        make_elastic(lambda x: x, X)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match=r"at least one input, got a tensor of \[0, 3, 8, 8\]"):
        make_elastic(make_toy("residual"), X[:0])


@pytest.mark.parametrize("kind", [tuple, dict])
def test_a_model_may_answer_with_several_tensors(kind: type) -> None:
    class Several(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.mid, self.head = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 1), nn.Linear(16, 5)

        def forward(self, x: Tensor) -> object:
            x = self.mid(self.stem(x))
            answer = self.head(x.mean([2, 3]))
            return (answer, x) if kind is tuple else {"answer": answer, "features": x}

    supernet = make_elastic(Several().eval(), X)
    assert set(supernet.groups) == {"stem"}
    net = extract(supernet, supernet.space.smallest(), X)
    with supernet.subnet(supernet.space.smallest()):
        wanted, got = supernet(X), net(X)
    for key in (0, 1) if kind is tuple else ("answer", "features"):
        torch.testing.assert_close(got[key], wanted[key])


def test_a_model_may_overwrite_its_input() -> None:
    class Centred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.mid, self.head = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 1), nn.Linear(16, 5)

        def forward(self, x: Tensor) -> Tensor:
            x -= 0.5
            return self.head(self.mid(self.stem(x)).mean([2, 3]))

    example = X.clone()
    supernet = make_elastic(Centred().eval(), example)
    extract(supernet, supernet.space.smallest(), example)
    assert torch.equal(example, X)


def test_steps_and_least_shares_by_pattern_hold_and_are_shown() -> None:
    settings = ElasticSettings(steps={"layer4.*": 64, "layer4.1.*": 128}, min_shares={"conv1": 0.75}, tie=())
    supernet = make_elastic(resnet18(), torch.zeros(1, 3, 64, 64), settings)
    choices = {knob.name: knob.choices for knob in supernet.space.knobs}
    assert choices["conv1"] == (48, 56, 64)
    assert choices["layer4.0.conv1"] == tuple(range(64, 513, 64))
    assert choices["layer4.1.conv1"] == (128, 256, 384, 512)  # the last pattern that names it
    assert choices["layer3.0.conv1"][:2] == (32, 40)
    shown = {entry["knob"]: entry["rules"] for entry in supernet.coverage["groups"]}
    assert shown["conv1"] == ["min_share 0.75 (conv1)"]
    assert shown["layer4.1.conv1"] == ["step 64 (layer4.*)", "step 128 (layer4.1.*)"]
    assert shown["layer3.0.conv1"] == []


def test_a_step_for_a_path_that_does_not_exist_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"steps='layr4\.\*' matches no module"):
        make_elastic(resnet18(), torch.zeros(1, 3, 64, 64), ElasticSettings(steps={"layr4.*": 64}))
