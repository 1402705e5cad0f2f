"""The results of a walk as a page: which aims are met, who misses them, and a line for each network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.zoo.names import family_of

Found = Mapping[str, Any]  # what is kept of one network
BIG_MACS = 10_000_000_000
LONGEST_REASON = 160
HEAD = """# The zoo

All classification networks of torchvision, and the smallest network of each family (file) of timm, with random weights,
at the resolution of their published weights. Scales that start at zero, shifts and batch-norm statistics get random
values first, so that no branch is silent. Each network is converted with the default settings, which also proves it
equal to the model bit by bit at full width; then the smallest sub-net and a random one are cut out.

- **Kind**, by operators: attention (products of two activations) and convolutions (over more than one position, beyond
  the layer that reads the image) make a hybrid; either alone a transformer or a CNN; neither an MLP.
- **Form**: what runs and what sub-nets are cut from, the model's own classes or the graph of its operations.
- **Free**: the kinds of width groups, whether blocks can be skipped, and whether sub-nets may take smaller images
  (about six sevenths as high are tried, in a conversion of its own).
- Widths are multiples of 8 channels by default, and of 4 in layers narrower than 32.
- **Reachable**: the share of multiply-adds in operations that some knob changes. **Smallest**: the smallest sub-net's
  share of multiply-adds and of parameters.
- **Sub-nets**: the exact number of different ones, as a power of ten.
- **Seconds** of one core that the conversion took, without the imports of torch.export, which the first one in a
  process makes. Much other work was running on the machine, which costs a fifth and more; the few that took longer than
  is aimed at were measured once more, by name, when less was running.
- **Right**: extracted and active sub-nets agree; multiply-adds and parameters of the whole network, of the smallest
  sub-net and of a random one are those that an independent counter finds.
- **Exports** (`--exports`): the smallest sub-net, with statistics of its own, is written by torch.export and as ONNX
  for any batch size, read back (in ONNX Runtime) and compared with eager mode on images of its own.
"""


@dataclass(frozen=True)
class Aim:
    """One thing that a network is to reach: what is said of it, and how far a network is from it."""

    words: str
    applies: Callable[[Found], bool]
    met: Callable[[Found], bool]
    value: Callable[[Found], str]


def converted(found: Found) -> bool:
    """Whether there is a supernet."""
    return bool(found["status"] == "converted")


def attends(found: Found) -> bool:
    """Whether a converted network is held to what is aimed at for transformers."""
    return converted(found) and found["kind"] in ("transformer", "hybrid")


def convolves(found: Found) -> bool:
    """Whether a converted network is held to what is aimed at for CNNs."""
    return converted(found) and not attends(found)


def is_big(found: Found) -> bool:
    """Whether conversion may take longer."""
    return bool(found["macs"] > BIG_MACS)


def _percent(key: str) -> Callable[[Found], str]:
    return lambda found: f"{100 * found[key]:.1f} %"


def _seconds(found: Found) -> str:
    return f"{found['cpu_s']:.1f} s"


AIMS = (
    Aim(
        "torchvision: converted (all)",
        lambda f: _source(f) == "torchvision",
        converted,
        lambda f: short(f["reason"]),
    ),
    Aim(
        "timm: converted (90 %)",
        lambda f: _source(f) == "timm",
        converted,
        lambda f: short(f["reason"]),
    ),
    Aim(
        "reachable multiply-adds of CNNs and MLPs >= 95 %",
        convolves,
        lambda f: f["reachable_macs_share"] >= 0.95,
        _percent("reachable_macs_share"),
    ),
    Aim(
        "reachable multiply-adds of transformers and hybrids >= 90 %",
        attends,
        lambda f: f["reachable_macs_share"] >= 0.9,
        _percent("reachable_macs_share"),
    ),
    Aim(
        "smallest sub-net of CNNs and MLPs <= 15 % of the multiply-adds",
        convolves,
        lambda f: f["smallest_macs_share"] <= 0.15,
        _percent("smallest_macs_share"),
    ),
    Aim(
        "smallest sub-net of transformers and hybrids <= 25 %",
        attends,
        lambda f: f["smallest_macs_share"] <= 0.25,
        _percent("smallest_macs_share"),
    ),
    Aim(
        "conversion <= 10 s",
        lambda f: converted(f) and not is_big(f),
        lambda f: f["cpu_s"] <= 10,
        _seconds,
    ),
    Aim(
        "conversion <= 30 s above 10 GMACs",
        lambda f: converted(f) and is_big(f),
        lambda f: f["cpu_s"] <= 30,
        _seconds,
    ),
    Aim("right", converted, lambda f: not f["wrong"], lambda f: short("; ".join(f["wrong"]))),
    Aim(
        "torch.export and ONNX of the smallest sub-net",
        lambda f: f.get("exports") is not None,
        lambda f: f["exports"]["status"] == "exported",
        lambda f: short("; ".join(f["exports"]["wrong"]) or f["exports"]["reason"]),
    ),
)


def as_page(results: Sequence[Found], command: str, machine: Mapping[str, Any]) -> str:
    """The whole page.

    Args:
        results: of all networks.
        command: what made them.
        machine: what `describe_device` says.
    """
    lines = [
        HEAD,
        "| aim | networks | met | missed by |",
        "|---|---|---|---|",
        *map("".join, _summary(results)),
        "",
    ]
    for source in dict.fromkeys(map(_source, results)):
        lines += _table(source, [found for found in results if _source(found) == source])
    left = [found for found in results if not converted(found)]
    if left:
        lines += ["## Not converted", "", *(f"- {f['name']}: {short(f['reason'])}" for f in left), ""]
    lines += [f"Made by `{command}` (`make zoo`; resumable; `--shard 1/4` does a quarter).", ""]
    dates = sorted({found["date"] for found in results})
    stamps = {f"torch {f['torch']}, torchvision {f['torchvision']}, timm {f['timm']}" for f in results}
    made = " to ".join(dict.fromkeys((dates[0], dates[-1])))
    lines += [f"{machine['cpu']}, {machine['os']}, {'; '.join(sorted(stamps))}, {made}."]
    return "\n".join([*lines, ""])


def summary(results: Sequence[Found]) -> list[dict[str, Any]]:
    """For each aim how many networks it is for, how many meet it, and who does not."""
    rows = []
    for aim in AIMS:
        held = [found for found in results if aim.applies(found)]
        missed = {found["name"]: aim.value(found) for found in held if not aim.met(found)}
        rows.append(
            {"aim": aim.words, "networks": len(held), "met": len(held) - len(missed), "missed": missed}
        )
    return rows


def short(reason: str) -> str:
    """The first line of a reason, cut where it gets long."""
    first = reason.strip().splitlines()[0] if reason.strip() else "no reason"
    return first if len(first) <= LONGEST_REASON else first[:LONGEST_REASON].rsplit(" ", 1)[0] + " ..."


def _summary(results: Sequence[Found]) -> Iterator[str]:
    for row in summary(results):
        share = f"{100 * row['met'] / row['networks']:.0f} %" if row["networks"] else ""
        missed = "; ".join(f"{name} ({value})" for name, value in row["missed"].items())
        yield _line(row["aim"], row["networks"], f"{row['met']} ({share})", missed)


def _table(source: str, results: Sequence[Found]) -> list[str]:
    heads = ["network", *(["family"] if source == "timm" else []), "kind", "GMACs", "form", "free"]
    heads += ["reachable", "smallest", "sub-nets", "seconds", "right", "exports"]
    lines = [f"## {source}", "", _line(*heads), "|" + "---|" * len(heads)]
    for found in results:
        entry = found["name"].partition(":")[2]
        first = [entry, *([family_of(found["name"])] if source == "timm" else [])]
        if not converted(found):
            lines.append(_line(*first, *([""] * (len(heads) - len(first) - 2)), found["status"], ""))
            continue
        smallest = f"{100 * found['smallest_macs_share']:.1f} / {100 * found['smallest_params_share']:.1f} %"
        free = ", ".join(freedom.removesuffix(" width") for freedom in found["freedoms"])
        lines.append(
            _line(
                *first,
                found["kind"],
                f"{found['macs'] / 1e9:.2f}",
                found["form"],
                free,
                f"{100 * found['reachable_macs_share']:.1f} %",
                smallest,
                f"10^{found['subnets_log10']:.1f}",
                f"{found['cpu_s']:.1f}",
                "**no**" if found["wrong"] else "yes",
                _exported(found),
            )
        )
    return [*lines, ""]


def _exported(found: Found) -> str:
    """Both formats, those that work, or nothing where that is not known."""
    known = found.get("exports")
    if known is None:
        return ""
    works = [name for name, made in known.get("formats", {}).items() if "reason" not in made]
    return "yes" if known["status"] == "exported" else f"**no** ({', '.join(works) or 'none'})"


def _line(*cells: object) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def _source(found: Found) -> str:
    return str(found["name"]).partition(":")[0]
