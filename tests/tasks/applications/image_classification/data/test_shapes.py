"""`shapes`: what is drawn depends on (seed, number) alone, and nothing but the outline tells the class."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.linear_model import LogisticRegression

from tasks.applications.images import shapes as rules
from tasks.applications.images import shapes_file
from tasks.applications.images.shapes import NAMES, shapes
from zo.estimators import Key

BLOCK = rules.BLOCK


def test_images_are_bytes_of_the_shape_of_cifar():
    images, labels = shapes(300, 0)
    assert (images.shape, images.dtype) == ((300, 3, 32, 32), torch.uint8)
    assert (labels.shape, labels.dtype) == ((300,), torch.int64)
    assert labels.unique().tolist() == list(range(10)) == list(range(len(NAMES)))


def test_an_image_hangs_on_seed_and_number_alone():
    state = torch.get_rng_state()
    few, many, other = shapes(BLOCK + 3, 1), shapes(2 * BLOCK, 1), shapes(5, 2)
    assert torch.equal(few[0], many[0][: BLOCK + 3]) and torch.equal(few[1], many[1][: BLOCK + 3])
    assert not torch.equal(few[0][:5], other[0])
    assert torch.equal(torch.get_rng_state(), state)
    assert len(many[0].flatten(1).unique(dim=0)) == 2 * BLOCK  # no block repeats another


@pytest.mark.parametrize("name", NAMES)
def test_outlines_have_the_area_of_the_unit_disc_and_their_centroid_at_the_origin(name):
    """By random points: the area's standard error over 400,000 of them is .4 % of it, and 5 are allowed."""
    generator = torch.Generator().manual_seed(0)
    reach, points = 2.5, 400_000
    x, y = (torch.rand(2, points, generator=generator, dtype=torch.float64) * 2 - 1) * reach
    inside = rules.inside(name, x, y) > 0
    share = math.pi / (2 * reach) ** 2
    assert abs(inside.double().mean() - share) < 5 * math.sqrt(share * (1 - share) / points)
    for coordinate in (x, y):
        values = coordinate[inside]
        assert abs(values.mean()) < 5 * values.std() / math.sqrt(len(values))


def test_outlines_are_zero_at_their_edge_and_rise_like_a_distance():
    """The slope of the distance is 1; these are within a factor of 2.1 of that where the edge is smooth."""
    x, y = torch.meshgrid(*[torch.linspace(-2, 2, 801, dtype=torch.float64)] * 2, indexing="xy")
    for name in NAMES:
        value = rules.inside(name, x, y)
        down, right = torch.gradient(value, spacing=4 / 800)
        slope = torch.hypot(down, right)[value.abs() < 0.05]
        assert 0.4 < slope.quantile(0.05) and slope.quantile(0.95) < 2.1, name


def test_a_drawn_outline_covers_the_area_of_its_disc():
    """All classes at once: the covered pixels against pi r^2, without clutter or the image's border."""
    key, rows = Key(3), 400
    drawn = rules.draw_factors(key, rows, 64)
    labels = rules.draw_labels(key, rows, 10)
    axis = torch.arange(64) - 31.5
    y, x = (grid[None] for grid in torch.meshgrid(axis, axis, indexing="ij"))
    covered = rules._outline(labels, drawn, x, y).sum((1, 2))
    ratio = covered / (math.pi * drawn.radius**2)
    for label in range(10):
        assert abs(ratio[labels == label].mean() - 1) < 0.06, NAMES[label]


def columns(drawn):
    """Every number among the factors of images, by name, `(rows,)`."""
    for field in dataclasses.fields(drawn):
        values = getattr(drawn, field.name)
        for place, column in enumerate(values.reshape(len(values), -1).T):
            yield f"{field.name}[{place}]", column.numpy()


def test_no_factor_tells_the_class():
    """Kruskal-Wallis of each factor over the classes; with p > 1e-6 each, 1e-4 false alarms in all."""
    blocks = [Key(0, block) for block in range(16)]
    labels = torch.cat([rules.draw_labels(key, BLOCK, 10) for key in blocks]).numpy()
    drawn = [rules.draw_factors(key, BLOCK, 32) for key in blocks]
    whole = rules.Factors(
        *[torch.cat([getattr(one, field.name) for one in drawn]) for field in dataclasses.fields(drawn[0])]
    )
    for name, column in columns(whole):
        groups = [column[labels == label] for label in range(10)]
        if len(np.unique(column)) > 1:
            assert stats.kruskal(*groups).pvalue > 1e-6, name
    kinds = np.array([np.bincount(whole.kinds[labels == label, 1], minlength=4) for label in range(10)])
    assert stats.chi2_contingency(kinds).pvalue > 1e-6
    assert stats.chisquare(np.bincount(labels, minlength=10)).pvalue > 1e-6


def test_factors_are_what_their_bounds_say():
    drawn = rules.draw_factors(Key(5), 4000, 32)
    apart = (drawn.colours[:, 1] - drawn.colours[:, 0]).norm(dim=1)
    for values, (low, high) in (
        (drawn.radius, rules.RADIUS),
        (apart, rules.CONTRAST),
        (drawn.noise, rules.NOISE),
        (drawn.turn, (-rules.TURN, rules.TURN)),
        (drawn.centre[:, 0], (-rules.CENTRE, rules.CENTRE)),
        (drawn.stretch.log(), (-math.log1p(rules.STRETCH), math.log1p(rules.STRETCH))),
        (2 * math.pi / drawn.waves[..., :2].norm(dim=-1).flatten(), rules.PERIOD),
    ):
        span = high - low
        assert (
            low - 1e-5 <= values.min() < low + 0.01 * span
            and high - 0.01 * span < values.max() <= high + 1e-5
        )
    there = drawn.fragments[..., 8]
    behind, front = (
        there[:, : rules.FRAGMENTS // 2].sum(1),
        there[:, rules.FRAGMENTS // 2 :].sum(1),
    )
    assert there.sum(1).unique().tolist() == list(range(rules.FRAGMENTS + 1))
    assert abs(behind.mean() - front.mean()) < 5 * (behind - front).std() / math.sqrt(4000)


@pytest.mark.slow
def test_mean_colour_and_spread_do_not_tell_the_class():
    """A linear classifier on each image's means and deviations stays within 5 standard errors of chance."""
    images, labels = shapes(4096, 7)
    pixels = images.double() / 255
    seen = torch.cat([pixels.mean((2, 3)), pixels.std((2, 3))], dim=1).numpy()
    seen = (seen - seen.mean(0)) / seen.std(0)
    classifier = LogisticRegression(max_iter=200).fit(seen[:2048], labels[:2048].numpy())
    accuracy = classifier.score(seen[2048:], labels[2048:].numpy())
    chance = np.bincount(labels[2048:]).max() / 2048
    assert accuracy < chance + 5 * math.sqrt(0.09 / 2048)


def test_labels_and_outlines_belong_together():
    """Without clutter, noise or textures the covered pixels are those of the label's outline."""
    key = Key(11)
    drawn = rules.draw_factors(key, 40, 32)
    plain = dataclasses.replace(
        drawn,
        ripples=torch.zeros_like(drawn.ripples),
        fragments=drawn.fragments * torch.tensor([1.0] * 8 + [0.0]),
        noise=torch.zeros_like(drawn.noise),
        colours=torch.tensor([0.0, 1.0]).view(1, 2, 1).expand(40, 2, 3),
    )
    labels = rules.draw_labels(key, 40, 10)
    images = rules.draw(labels, plain, key, 32)[:, 0] > 127
    axis = np.arange(32) - 15.5
    x, y = np.meshgrid(axis, axis)
    for row in range(40):
        turn, centre = drawn.turn[row].item(), drawn.centre[row].numpy()
        rotation = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
        u, v = np.tensordot(rotation, np.stack([x - centre[0], y - centre[1]]), 1)
        radius, stretch = drawn.radius[row].item(), drawn.stretch[row].item()
        places = torch.from_numpy(u / radius / stretch), torch.from_numpy(v / radius * stretch)
        wrong = [((rules.inside(name, *places) > 0) != images[row]).sum().item() for name in NAMES]
        assert np.argmin(wrong) == labels[row] and min(wrong) <= 12


def test_images_that_were_drawn_are_read_block_by_block_and_mended_where_torn(tmp_path, limits, monkeypatch):
    limits(shapes_kept=1)
    drawn, original = [], shapes_file.draw_block

    def counted(seed, block):
        drawn.append(block)
        if len(drawn) == 2:
            raise KeyboardInterrupt
        return original(seed, block)

    monkeypatch.setattr(shapes_file, "draw_block", counted)
    whole = shapes(BLOCK + 3, 5)
    with pytest.raises(KeyboardInterrupt):
        shapes_file.kept_shapes(BLOCK + 3, 5, tmp_path)
    for expected in ([1], [], [0]):
        drawn.clear()
        drawn += [None] * 2
        images, labels = shapes_file.kept_shapes(BLOCK + 3, 5, tmp_path)
        assert torch.equal(images, whole[0]) and torch.equal(labels, whole[1])
        assert drawn[2:] == expected
        (file,) = tmp_path.iterdir()
        if not expected:
            file.write_bytes(b"x" + file.read_bytes()[1:])
    assert torch.equal(shapes_file.kept_shapes(BLOCK + 3, 5, file)[0], whole[0])  # no folder: it is drawn
