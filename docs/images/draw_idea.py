"""Writes idea.svg, the drawing at the top of the README: ``python docs/images/draw_idea.py``.

Two networks, one loss, one kept. Colours follow the reader's light or dark page.
"""

from pathlib import Path

WIDTH, HEIGHT = 860, 266
STYLE = """
  text { font: 15px system-ui, -apple-system, "Segoe UI", sans-serif; fill: #1f2328; text-anchor: middle }
  .label { font-weight: 600 }
  .small { font-size: 13px; fill: #59636e }
  .box { fill: none; stroke: #59636e; stroke-width: 1.5 }
  .base { fill: #0072b21a; stroke: #0072b2; stroke-width: 2 }
  .twin { fill: #d55e001a; stroke: #d55e00; stroke-width: 2; stroke-dasharray: 6 4 }
  .arrow { fill: none; stroke: #59636e; stroke-width: 1.5; marker-end: url(#head) }
  .head { fill: #59636e }
  .spike { stroke-width: 2 }
  .base-ink { stroke: #0072b2 } .twin-ink { stroke: #d55e00 }
  .base-text { fill: #0072b2 } .twin-text { fill: #b34e00 }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc } .small { fill: #9198a1 }
    .box, .arrow { stroke: #9198a1 } .head { fill: #9198a1 }
    .base { fill: #56b4e926; stroke: #56b4e9 } .twin { fill: #e69f0026; stroke: #e69f00 }
    .base-ink { stroke: #56b4e9 } .twin-ink { stroke: #e69f00 }
    .base-text { fill: #56b4e9 } .twin-text { fill: #e69f00 }
  }
"""


def box(x: int, y: int, width: int, height: int, kind: str, *lines: str) -> str:
    """A rounded box; the first line is large, the others small."""
    middle = x + width / 2
    first = y + height / 2 + 5 - 10 * (len(lines) - 1)
    kinds = (' class="label"', *[' class="small"'] * (len(lines) - 1))
    texts = [
        f'<text x="{middle}" y="{first + 20 * row}"{size}>{line}</text>'
        for row, (line, size) in enumerate(zip(lines, kinds, strict=True))
    ]
    return f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{height}" rx="8"/>' + "".join(texts)


def arrow(*points: tuple[int, int]) -> str:
    """A line through points, with a head at its end."""
    return f'<polyline class="arrow" points="{" ".join(f"{x},{y}" for x, y in points)}"/>'


def spikes(x: int, y: int, times: str, ink: str) -> str:
    """A row of time steps: a stroke where there is a spike, a dot of the same width where there is none."""
    marks = []
    for step, fired in enumerate(times):
        at = x + 12 * step
        top = y - 12 if fired == "1" else y - 1
        marks.append(f'<line class="spike {ink}" x1="{at}" y1="{top}" x2="{at}" y2="{y}"/>')
    return "".join(marks)


def drawing() -> str:
    """The SVG."""
    parts = [
        box(8, 105, 128, 60, "box", "images", "or event frames"),
        arrow((136, 125), (155, 125), (155, 75), (183, 75)),
        arrow((136, 145), (155, 145), (155, 195), (183, 195)),
        box(185, 40, 190, 70, "base", "base", "weights -1, 0, +1"),
        box(185, 160, 190, 70, "twin", "twin", "its own weights, float32"),
        spikes(393, 68, "0110100", "base-ink"),
        spikes(393, 188, "1010010", "twin-ink"),
        arrow((375, 75), (483, 75)),
        arrow((375, 195), (483, 195)),
        box(485, 50, 90, 50, "box", "logits"),
        box(485, 170, 90, 50, "box", "logits"),
        arrow((575, 75), (648, 75)),
        arrow((575, 195), (648, 195)),
        arrow((530, 100), (530, 120)),
        arrow((530, 170), (530, 150)),
        '<text x="530" y="140">(difference)²</text>',
        arrow((583, 135), (648, 135)),
        box(
            650,
            50,
            190,
            170,
            "box",
            "one loss",
            "cross-entropy of the base",
            "+ of the twin",
            "+ λ · match of the logits",
        ),
        '<text class="base-text" x="280" y="26">kept, packed at 2 bits a weight</text>',
        '<text class="twin-text" x="280" y="254">goes when training ends</text>',
    ]
    head = '<marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
    head += '<path class="head" d="M0,0 L8,4 L0,8 z"/></marker>'
    label = "A batch goes through two spiking networks, the base with ternary weights and its twin; one loss adds both "
    label += "cross-entropies and the squared difference of the logits; the base alone is kept."
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">\n'
        f"<style>{STYLE}</style><defs>{head}</defs>\n" + "\n".join(parts) + "\n</svg>\n"
    )


if __name__ == "__main__":
    Path(__file__).with_name("idea.svg").write_text(drawing(), encoding="utf-8")
