"""Strategies by their mean rank over all places, in the manner of a critical difference diagram."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fourfold.report.canvas import PALETTE, WIDTH, inline, styled, svg
from fourfold.study.ranking import Ranking

ROW = 0.24  # inches


def draw_ranks(axes: Axes, ranking: Ranking) -> None:
    """One row for each strategy; bars join those whose mean ranks lie within the critical difference."""
    rows = len(ranking.strategies)
    for row, (strategy, rank) in enumerate(zip(ranking.strategies, ranking.ranks, strict=True)):
        axes.plot(rank, row, "o", color=PALETTE["chosen"] if row == 0 else PALETTE["muted"], markersize=5.5, zorder=3)
        axes.text(rows + 0.12, row, f"{rank:.2f}", va="center")
        axes.text(0.88, row, strategy, va="center", ha="right")
    for index, clique in enumerate(ranking.cliques):
        ends = [ranking.strategies.index(clique[0]), ranking.strategies.index(clique[-1])]
        at = rows - 0.35 + 0.3 * index
        axes.plot([ranking.ranks[end] for end in ends], [at, at], color=PALETTE["tied"], linewidth=4, solid_capstyle="butt")
    axes.set_xlim(1, rows)
    axes.set_ylim(rows - 0.5 + 0.3 * len(ranking.cliques), -0.5)
    axes.set_yticks([])
    axes.set_xticks(range(1, rows + 1))
    axes.grid(axis="x", color=PALETTE["rule"], linewidth=0.6)
    axes.set_xlabel("mean rank; 1 is best")


def figure(ranking: Ranking) -> Figure:
    """The diagram alone; call it within `styled`."""
    height = 0.5 + ROW * (len(ranking.strategies) + 0.3 * len(ranking.cliques))
    label = 0.1 + 0.066 * max(map(len, ranking.strategies))
    width = max(WIDTH + 0.4, label + 2.5)  # names of strategies may be long, as those of networks are
    drawn = Figure(figsize=(width, height))
    draw_ranks(drawn.add_axes((label / width, 0.42 / height, (width - label - 0.5) / width, 1 - 0.48 / height)), ranking)
    return drawn


def panel(ranking: Ranking) -> str:
    """The diagram as an `<svg>` element for the page."""
    told = "; ".join(f"{name} {rank:.2f}" for name, rank in zip(ranking.strategies, ranking.ranks, strict=True))
    with styled():
        return inline(svg(figure(ranking)), "ranks", f"mean ranks: {told}")
