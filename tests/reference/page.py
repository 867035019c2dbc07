"""docs/reference.md: method by method, how far ours is from the authors' code."""

from __future__ import annotations

from itertools import groupby

from tests.reference.golden import COMMAND, Row, load

RELEASES = {
    "activation_clustering": (
        "vtu81/backdoor-toolbox@9d4d909, SCLBD/BackdoorBench@f02e353",
        "cleansers_tool_box/activation_clustering.py:cleanser; detection_pretrain/ac.py",
    ),
    "anp": (
        "csdongxian/ANP_backdoor@ec7b179",
        "optimize_mask_cifar.py:mask_train; prune_neuron_cifar.py:pruning",
    ),
    "br": (
        "SCLBD/Effective_backdoor_defense@63fda0e",
        "unlearn_relearn.py:train_step_unlearning, train_step_relearning",
    ),
    "clp": ("SCLBD/BackdoorBench@f02e353", "defense/clp.py:CLP_prune"),
    "curvature": (
        "nazmul-karim170/FIP-Fisher-Backdoor-Removal@b787f04",
        "dense float64 derivatives, and the release's copy of PyHessian",
    ),
    "fct": (
        "SCLBD/Effective_backdoor_defense@63fda0e",
        "calculate_consistency; calculate_gamma.py; separate_samples",
    ),
    "fip": (
        "nazmul-karim170/FIP-Fisher-Backdoor-Removal@b787f04",
        "src/Regularizer.py:CDA_Regularizer",
    ),
    "ft_sam": ("SCLBD/BackdoorBench@f02e353", "utils/defense_utils/sam; defense/ft-sam.py"),
    "i_bau": ("vtu81/backdoor-toolbox@9d4d909", "other_defenses_tool_box/IBAU.py:detect"),
    "mce": ("SCLBD/Effective_backdoor_defense@63fda0e", "ST/train_classifier.py:train"),
    "mcr": (
        "IBM/model-sanitization@1eff7e9",
        "backdoor/backdoor-cifar/curves.py:CurveNet; utils.py:train, update_bn",
    ),
    "nad": ("SCLBD/BackdoorBench@f02e353", "defense/nad.py:AT"),
    "sam": (
        "nazmul-karim170/FIP-Fisher-Backdoor-Removal@b787f04",
        "src/sam.py:SAM; src/sam_model/smooth_cross_entropy.py; bypass_bn",
    ),
    "scan": ("vtu81/backdoor-toolbox@9d4d909", "cleansers_tool_box/scan.py"),
    "sd": (
        "SCLBD/Effective_backdoor_defense@63fda0e",
        "train_attack_noTrans.py, finetune_attack_noTrans.py:train_epoch",
    ),
    "sibp": ("liminghaoya/SIBP@112f823", "defense.py:SIBP"),
    "soda": (
        "sunbing7/SODA@d8fc90c",
        "semantic_mitigation.py:analyze_hidden, analyze_pcc, detect_pcc, analyze_source_class, "
        "locate_outstanding_neuron, gen_trigger",
    ),
    "spectral_signatures": (
        "vtu81/backdoor-toolbox@9d4d909, SCLBD/BackdoorBench@f02e353",
        "cleansers_tool_box/spectral_signature.py:cleanser; defense/spectral.py",
    ),
    "ss_ctl": (
        "SCLBD/Effective_backdoor_defense@63fda0e",
        "ST/losses.py:SupConLoss_Consistency",
    ),
    "strip": (
        "vtu81/backdoor-toolbox@9d4d909",
        "other_defenses_tool_box/strip.py; cleansers_tool_box/strip.py",
    ),
}
"""Golden file of a defense -> repository and commit, files and functions."""

HEAD = f"""# Beside the authors' code

Written by `{COMMAND}`. The authors' own code was given small inputs once, and what it
returned was kept in *golden files*. `tests/reference/` gives our code the same inputs, weights and
random draws. Each line below is one golden file of `tests/reference/golden/`, which holds the
inputs and the figures that came out, and no code.

A difference is the largest over all values, measured on the machine that wrote this page. For
pixels it is in levels of 0..255, with the share of pixels that differ; for floats it is absolute,
unless the line says relative. 0 means that every value is equal. Every commit is tested against a
tolerance a little above these differences, so an edit that moves a result fails. `Largest` leaves
out what differs on purpose. What was compared in each file, and which functions of the release
were run, [stands below](#what-was-compared).
"""

COLUMNS = ("Golden file", "Release", "Largest", "Differs on purpose")


def text(rows: list[Row]) -> str:
    """The page of these comparisons."""
    parts = [HEAD, summary(rows)]
    files = {
        name: list(group)
        for name, group in groupby(sorted(rows, key=lambda r: r.name), key=lambda r: r.name)
    }
    for kind in ("attacks", "defenses"):
        lines = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
        lines += [_line(name, found) for name, found in files.items() if name.startswith(kind)]
        parts.append(f"## {kind.capitalize()}\n\n" + "\n".join(lines) + "\n")
    parts.append("## What was compared\n\n" + "\n".join(_item(n, f) for n, f in files.items()))
    return "\n".join(parts) + "\n"


def summary(rows: list[Row]) -> str:
    """How many comparisons there are, and of which kind."""
    meant = [row for row in rows if row.why]
    rest = [row for row in rows if not row.why]
    equal = sum(not row.difference for row in rest)
    return (
        f"{len({row.name for row in rows})} files, {len(rows)} comparisons: {equal} equal in every "
        f"value, {len(rest) - equal} within rounding or what the line says, {len(meant)} different "
        "on purpose.\n"
    )


def release(name: str) -> tuple[str, str]:
    """Repository and commit, files and functions behind a golden file."""
    if name.startswith("defenses/"):
        return RELEASES[name.removeprefix("defenses/")]
    meta = load(name).meta
    return meta["repository"].replace(";", ","), meta["function"]


def links(name: str) -> str:
    """Links to the releases at their commits."""
    found = []
    for repository in release(name)[0].split(", "):
        project, _, commit = repository.partition("@")
        short = project.partition("/")[2]
        found.append(f"[{short} {commit}](https://github.com/{project}/tree/{commit})")
    return ", ".join(found)


def _line(name: str, rows: list[Row]) -> str:
    """One golden file in its table."""
    kept = [row for row in rows if not row.why] or rows
    cells = [
        name.partition("/")[2],
        links(name),
        size(max(kept, key=lambda row: row.difference)),
        " ".join(dict.fromkeys(row.why for row in rows if row.why)),
    ]
    return "| " + " | ".join(cells) + " |"


def _item(name: str, rows: list[Row]) -> str:
    """One golden file in the list of what was compared."""
    compared = "; ".join(f"{row.what} {size(row)}" for row in rows)
    return f"- `{name}` ({release(name)[1]}): {compared}"


def size(row: Row) -> str:
    """A difference in words."""
    if not row.difference:
        return "0"
    if row.relative:
        return f"{row.difference:.0e} relative"
    if row.whole:
        return f"{row.difference:.0f} in {100 * row.share:.2g} %"
    return f"{row.difference:.0e}" if row.difference < 0.01 else f"{row.difference:.2g}"
