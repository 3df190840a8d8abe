"""README's table, made from a run's figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"


def write_table(readme: Path, told: dict[str, Any]) -> None:
    """Replaces what stands between the two marks."""
    text = readme.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    readme.write_text(f"{before}{BEGIN}\n{table(told)}\n{END}{after}", encoding="utf-8")


def table(told: dict[str, Any]) -> str:
    engine = told["engine"]
    lines = [
        "| slots | transformers bf16, s per frame | int8 | ratio | RTF together"
        " | int4 | ratio | RTF together |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for slots, theirs in engine["s_per_frame"]["transformers"].items():
        cells = [slots, f"{theirs:.3f}"]
        for precision in ("int8", "int4"):
            cells += [
                f"{engine['s_per_frame'][precision][slots]:.3f}",
                f"{engine['ratio_vs_transformers'][precision][slots]:.1f}x",
                f"{engine['aggregate_rtf'][precision][slots]:.2f}",
            ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
