import pytest

from blackbox.words import counted


@pytest.mark.parametrize(
    ("number", "noun", "said"),
    [
        (1, "query", "1 query"),
        (2, "query", "2 queries"),
        (0, "row", "0 rows"),
        (1234, "box row", "1,234 box rows"),
        (3, "box", "3 boxes"),
        (2, "process", "2 processes"),
        (2, "array", "2 arrays"),
    ],
)
def test_a_count_has_its_noun_in_the_right_number(number, noun, said):
    assert counted(number, noun) == said
