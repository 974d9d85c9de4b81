from datamodules import yardsticks


def test_words_cut_off_at_the_ends_do_not_count() -> None:
    known = yardsticks.words(["some plain words"])
    assert yardsticks.known_words(["aome plain wordz some wor", "ome, plain"], known) == (3, 2)
    assert yardsticks.known_words(["a b"], known).share is None


def test_share() -> None:
    assert yardsticks.KnownWords(4, 3).share == 0.75
