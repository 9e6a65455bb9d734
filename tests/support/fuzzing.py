"""What the property tests share: how many cases they try, and values as no sane file holds them.

Cases are the same in every run. `pytest --hypothesis-profile=random` draws others, to look for what these miss.
"""

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

CHECKS = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]


def cases(number: int) -> settings:
    """So many cases, however long one takes. tests/test_fuzz_files.py adds the numbers up."""
    return settings(max_examples=number, deadline=None, suppress_health_check=CHECKS)


def names_one_of(error: Exception, names: list[str]) -> None:
    """A refusal has to say what it is about."""
    assert any(name in str(error) for name in names), error


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 70),
    st.sampled_from([10**6, -(2**63), 2**64, 10**30]),
    st.floats(),
    st.sampled_from([0.0, -0.0, 0.5, 1.0, 1e-320, 1e300, float("nan"), float("inf")]),
    st.sampled_from(["", "x", "none", "1", "nan", "../x", "/", "<script>", "\x00", "\ud7ff", "é" * 50, "a\nb"]),
    st.text(max_size=8),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=6,
)


@st.composite
def mutated(draw, content, most: int = 3):
    """Nested lists and dicts with up to `most` places replaced by something else, removed or repeated."""
    for _ in range(draw(st.integers(1, most))):
        content = _mutate(draw, content)
    return content


def _mutate(draw, node):
    if isinstance(node, dict) and node and draw(st.integers(0, 5)):
        key = draw(st.sampled_from(sorted(node, key=str)))
        if not draw(st.integers(0, 3)):
            return {name: value for name, value in node.items() if name != key}
        return {**node, key: _mutate(draw, node[key])}
    if isinstance(node, list) and node and draw(st.integers(0, 5)):
        index = draw(st.integers(0, len(node) - 1))
        if not draw(st.integers(0, 3)):
            return node[:index]
        return [*node[:index], _mutate(draw, node[index]), *node[index + 1 :]]
    return draw(VALUES)
