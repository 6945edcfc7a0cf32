"""What a search leaves in its folder, and what the folder is known by.

regmix_search.yaml       what it belongs to: the sources, and how the mixtures are drawn
mixtures.csv             a line for each proxy: its mixture, and its losses once it has ended
proxies/0001.yaml .log   the plan of a proxy, and what it said; its output_dir beside them
regmix.json              mixtures, losses, the fit, the mixture, what it cost
regmix.yaml              the mixture as a preset of the mixer static, for any run with the same datasets
final.yaml               the main run on the mixture
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from dataflex.config.load import read_mapping
from dataflex.core.errors import ConfigError
from dataflex.core.files import replacing
from dataflex.core.kinds import MIXER
from dataflex.utils.secret_values import scrubbed, taken_out

from dataflex_mixers.regmix.found_mixture import ALL, Found
from dataflex_mixers.regmix.mixture_drawing import Array
from dataflex_mixers.regmix.proxies import Main

PLAN, TABLE, RESULT, PRESET, FINAL = (
    "regmix_search.yaml", "mixtures.csv", "regmix.json", "regmix.yaml", "final.yaml",
)  # fmt: skip
_MARK = "# Written by dataflex-cli regmix"
_TO_REPLACE = frozenset({"file", "mixtures"})  # keys of the plan that may change: more proxies are further ones


def require_same_search(main: Main, prior_K: Array) -> dict[str, Any]:
    """Returns what the folder is known by, and refuses one of another search.

    Raises:
        ConfigError: It holds another search, or something else; the message names each difference.
    """
    folder = main.search.output_dir
    now = _plan(main, prior_K)
    path = folder / PLAN
    if not path.exists():
        if folder.exists() and any(folder.iterdir()):
            raise ConfigError(
                f"{folder} holds something, and {PLAN}, by which a search is known, is missing -> choose another "
                "output_dir, or move the folder away"
            )
        return now
    before = {str(key): value for key, value in read_mapping(path).items()}
    unlike = [
        f"{key}: {before.get(key)!r:.120} before, {now.get(key)!r:.120} now"
        for key in sorted({*before, *now} - _TO_REPLACE)
        if before.get(key) != now.get(key)
    ]
    if unlike:
        raise ConfigError(
            f"{folder} belongs to another search (of {before.get('file')}):\n  - "
            + "\n  - ".join(unlike)
            + f"\n-> choose another output_dir, restore {main.search.file.name}, or move the folder away"
        )
    return now


def write_plan(folder: Path, plan: Mapping[str, Any]) -> None:
    """Writes what the folder is known by; before the first proxy starts."""
    _write_yaml(folder / PLAN, plan, f"{_MARK}, which knows this folder by it.")


def _plan(main: Main, prior_K: Array) -> dict[str, Any]:
    search = main.search
    return {
        "file": str(search.file),
        "mixtures": search.mixtures,
        "sources": list(main.names),
        "prior": [round(float(share), 12) for share in prior_K],
        **asdict(search.drawing),
        "seed": search.seed,
    }


def write_table(path: Path, main: Main, mixtures_NK: Array, losses: Sequence[Sequence[float | None] | None]) -> None:
    """Writes ``mixtures.csv``; a proxy that has not ended has no losses."""
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["proxy", "held_out", *main.names, *main.targets])
        for number, (row, out, own) in enumerate(zip(mixtures_NK, main.search.is_held_out, losses, strict=True), 1):
            known: list[Any] = [""] * len(main.targets) if own is None else list(own)
            lines.writerow([number, out, *row.tolist(), *known])


def write_result(main: Main, found: Found, content: Mapping[str, Any]) -> None:
    """Writes ``regmix.json``, ``regmix.yaml`` and ``final.yaml``."""
    folder, names = main.search.output_dir, main.names
    shares = [float(share) for share in found.shares]
    with replacing(folder / RESULT) as temporary:
        text = json.dumps(_plain(content), indent=1, allow_nan=False) + "\n"
        temporary.write_text(scrubbed(text), encoding="utf-8")
    preset = {MIXER.section: {"regmix": {"name": "static", "params": {"proportions": shares}}}}
    _write_yaml(folder / PRESET, preset, f"{_MARK}: the mixture of {', '.join(names)}, in this order of dataset.")
    config, secrets = taken_out(main.final(shares))
    told = f"\n# It leaves out secrets: {', '.join(secrets)}" if secrets else ""
    _write_yaml(folder / FINAL, config, f"{_MARK}: {main.search.base.name} on the mixture that was found.{told}")


def result(
    main: Main, prior_K: Array, mixtures_NK: Array, losses_NT: Array, found: Found, said: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns what stands in ``regmix.json``."""
    search, names = main.search, main.names
    return {
        "proportions": dict(zip(names, found.shares.tolist(), strict=True)),
        "unit": main.spec.arguments.mixture_unit,
        "predicted": found.predicted,
        "predicted_of_all_simulated": found.predicted_mean,
        "regressor": search.regressor,
        "simulate": search.simulate,
        "top_k": search.top_k,
        "targets": dict(main.targets),
        "held_out": {name: asdict(quality) for name, quality in found.quality.items()},
        "prior": dict(zip(names, prior_K.tolist(), strict=True)),
        "drawing": asdict(search.drawing),
        "seed": search.seed,
        "proxies": [
            {
                "proxy": number,
                "held_out": out,
                "proportions": dict(zip(names, row.tolist(), strict=True)),
                "losses": dict(zip(main.targets, own.tolist(), strict=True)),
            }
            for number, (row, own, out) in enumerate(
                zip(mixtures_NK, losses_NT, search.is_held_out, strict=True), start=1
            )
        ],
        **said,
    }


def summary(main: Main, prior_K: Array, found: Found, said: Mapping[str, Any]) -> str:
    """Returns what is printed at the end."""
    wide = max(len(name) for name in (*main.names, "source"))
    lines = [f"{'source':<{wide}}  prior   mixture"]
    for name, prior, share in zip(main.names, prior_K, found.shares, strict=True):
        lines.append(f"{name:<{wide}}  {prior:.4f}  {share:.4f}")
    whole, out = found.quality[ALL], sum(main.search.is_held_out)
    correlation = "not defined" if math.isnan(whole.rank_correlation) else f"{whole.rank_correlation:.3f}"
    lines += [
        "",
        f"rank correlation on {out} held-out proxies: {correlation}; mean error {whole.error:.4f} nats per token, "
        f"{whole.error_of_mean:.4f} by their mean alone",
        f"predicted loss {found.predicted:.4f}; {found.predicted_mean:.4f} in the mean of {main.search.simulate:,} "
        "simulated mixtures",
        f"the proxies took about {said['cost']['steps_of_main']:,.0f} steps of the main run, which has "
        f"{said['cost']['main_steps']:,} ({said['cost']['counted']})",
        *(f"warning: {text}" for text in said["warnings"]),
        f"{main.search.output_dir / FINAL}",
    ]
    return "".join(f"{line}\n" for line in lines)


def _write_yaml(path: Path, value: Mapping[str, Any], head: str) -> None:
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write(f"{head}\n")
        yaml.safe_dump(dict(value), file, sort_keys=False, allow_unicode=True)


def _plain(value: Any) -> Any:
    """Returns a value as JSON has it: null for what is not defined."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
