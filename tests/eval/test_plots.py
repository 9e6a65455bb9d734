"""Figures: data in, a readable PNG out."""

import numpy as np
import pytest
from matplotlib import rcParams
from matplotlib.image import imread

from concept_encoder.eval.report import plots
from concept_encoder.utils.results import SizeScore

SIMILARITY = np.array([[1, 0.1, 0.9, 0.0], [0.1, 1, 0.0, 0.8], [0.9, 0.0, 1, 0.1], [0.0, 0.8, 0.1, 1]])
CURVES = {
    "Loss": {"unit": "nats", "series": {"training": [[0, 5.0], [10, None], [20, 3.0]], "evaluation": [[0, 5.5]]}}
}
VIEWS = {
    "template": {"rankme": {"value": 3.0, "interval": None, "nulls": {"gaussian": 9.0}, "by_construction": False}},
    "across": {
        "rankme": {"value": 4.0, "interval": [3.0, 5.0], "nulls": {"gaussian": None}, "by_construction": False},
        "isoscore": {"value": None, "interval": None, "nulls": {"static_slots": 0.1}, "by_construction": False},
        "uniformity": {"value": -1.0, "interval": None, "nulls": {}, "by_construction": True},
    },
}
TIMESTEPS = [
    {"timestep": 0.25, "bits_shuffled": 0.4, "bits_null": None},
    {"timestep": 0.75, "bits_shuffled": -0.1, "bits_null": 0.2},
]
POSITIONS = [{"from": 0, "to": 7, "bits_null": 0.5}, {"from": 8, "to": 15, "bits_null": None}]
SIZES = [
    SizeScore(value=value, interval=interval, num_concepts=count, dim=8, bytes=32 * count, seconds=0.001)
    for count, value, interval in ((4, 0.5, (0.4, 0.6)), (16, 0.6, None), (64, None, None))
]
DRAWINGS = {
    "learning_curves": lambda path, theme: plots.plot_learning_curves(CURVES, path, theme),
    "loss_by_timestep": lambda path, theme: plots.plot_loss_by_timestep(
        [{"timestep": 0.25, "nll_bits": 2.0, "accuracy": 0.5}, {"timestep": 0.75, "nll_bits": None, "accuracy": None}],
        path,
        theme,
    ),
    "learning_curves_beside": lambda path, theme: plots.plot_learning_curves(CURVES, path, theme, CURVES, "another"),
    "singular_values": lambda path, theme: plots.plot_singular_values(
        [9.0, 3.0, 0.1, 0.0], path, theme, null=[4.0, 3.0], reference=[8.0, 4.0], other=[2.0, 1.0, 0.0]
    ),
    "spectrum_views": lambda path, theme: plots.plot_spectrum_views(VIEWS, path, theme, {"across": VIEWS["across"]}),
    "ledger_by_timestep": lambda path, theme: plots.plot_ledger_by_timestep(TIMESTEPS, path, theme, TIMESTEPS[1:]),
    "ledger_by_position": lambda path, theme: plots.plot_ledger_by_position(POSITIONS, path, theme, POSITIONS[:1]),
    "leave_one_out": lambda path, theme: plots.plot_leave_one_out([0.1, -0.01, 0.3], path, theme, 2, [0.2, 0.1]),
    "sizes": lambda path, theme: plots.plot_sizes(SIZES, path, theme),
    "similarity_matrix": lambda path, theme: plots.plot_similarity_matrix(SIMILARITY.tolist(), path, theme),
    "dimension_std": lambda path, theme: plots.plot_dimension_std(
        [0.8, 0.9, 1.1], path, theme, {"min_dimension_std": 0.6, "mean_dimension_std": 0.9, "max_dimension_std": 1.3}
    ),
    "concept_attention": lambda path, theme: plots.plot_concept_attention(
        ["$a", "b$", "\\frac{", "猫"], [[1, 0, 0, 0], [0, 0.5, 0.5, 0]], path, theme
    ),
    "scores": lambda path, theme: plots.plot_scores(
        [
            {
                "label": "a",
                "detail": "learning_rates=0.0003,0.001 epochs=3 " * 4,
                "chance": 0.5,
                "rows": [
                    {"label": "this run", "kind": "above", "value": 0.7, "interval": [0.6, 0.8]},
                    {"label": "another", "kind": "other", "value": 0.6, "interval": None},
                    {"label": "twin", "kind": "control", "value": None, "interval": None},
                    {"label": "BERT-Tiny", "kind": "published", "value": 0.9, "interval": None},
                ],
            },
            {
                "label": "b",
                "detail": "",
                "chance": None,
                "rows": [{"label": "this run", "kind": "barely", "value": -0.1, "interval": None}],
            },
        ],
        path,
        theme,
    ),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Glyph", "error:constrained_layout")
@pytest.mark.parametrize("theme", plots.THEMES)
@pytest.mark.parametrize("name", DRAWINGS)
def test_every_figure_is_drawn(name, theme, tmp_path):
    path = tmp_path / "figures" / f"{name}.png"
    before = dict(rcParams)
    DRAWINGS[name](path, theme)
    assert dict(rcParams) == before
    image = imread(path)
    assert image.shape[1] == plots.WIDTH * plots.DPI
    corner, background = image[0, 0, :3], int(plots.THEMES[theme]["background"][1:], 16)
    assert np.round(corner * 255).astype(int).tolist() == [background >> shift & 255 for shift in (16, 8, 0)]
    assert image[..., :3].std() > 0.02  # not blank
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_clusters_stand_side_by_side():
    order = plots.cluster_order(SIMILARITY)
    assert sorted(order) == [0, 1, 2, 3]
    assert {frozenset(order[:2]), frozenset(order[2:])} == {frozenset({0, 2}), frozenset({1, 3})}


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda path: plots.plot_learning_curves({}, path), "need learning curves"),
        (lambda path: plots.plot_learning_curves({"L": {"unit": "", "series": {"x": []}}}, path), "need curve x"),
        (lambda path: plots.plot_loss_by_timestep([], path), "need loss by timestep"),
        (lambda path: plots.plot_singular_values([], path), "the largest of them positive"),
        (lambda path: plots.plot_singular_values([0.0], path), "the largest of them positive"),
        (lambda path: plots.plot_similarity_matrix([[1.0]], path), r"square matrix .* got shape \(1, 1\)"),
        (lambda path: plots.plot_similarity_matrix([[1.0, 0.0]], path), r"square matrix .* got shape \(1, 2\)"),
        (lambda path: plots.plot_dimension_std([], path), "need standard deviations"),
        (lambda path: plots.plot_concept_attention(["a"], [[1, 0]], path), r"a row of 1 .* got shape \(1, 2\)"),
        (lambda path: plots.plot_scores([], path), "need downstream scores"),
        (lambda path: plots.plot_spectrum_views({"across": {}}, path), "a metric that is not fixed by construction"),
        (lambda path: plots.plot_ledger_by_timestep([], path), "need the ledger by timestep"),
        (lambda path: plots.plot_ledger_by_position([], path), "need the ledger by position"),
        (lambda path: plots.plot_sizes([], path), "need scores by size"),
        (lambda path: plots.plot_leave_one_out([], path), "need bits lost without each concept"),
    ],
)
def test_nothing_to_draw(draw, message, tmp_path):
    with pytest.raises(ValueError, match=f"nothing to draw: .*{message}"):
        draw(tmp_path / "figure.png")
    assert list(tmp_path.iterdir()) == []


def test_unknown_theme(tmp_path):
    with pytest.raises(ValueError, match="theme must be one of light, dark, got 'sepia'"):
        plots.plot_dimension_std([1.0], tmp_path / "figure.png", theme="sepia")
