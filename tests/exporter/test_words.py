"""The vocabulary: every name of the API has words, and what is made from them is current."""

from pathlib import Path
from typing import get_args

from optwrap_exporter.store.condition import Condition
from optwrap_exporter.wire import step_answers, vocabulary, words
from optwrap_exporter.wire.requests import Gauges

ROOT = Path(__file__).parents[2]


def test_the_pages_vocabulary_is_current() -> None:
    committed = (ROOT / "service" / "optwrap_exporter" / "page" / "vocabulary.js").read_text()
    assert committed == words.page(), "run make generated"


def test_the_documented_vocabulary_is_current() -> None:
    assert (ROOT / "docs" / "reference" / "words.md").read_text() == words.document(), "run make generated"


def test_every_health_has_words_worst_first() -> None:
    assert list(words.HEALTHS) == list(vocabulary.HEALTHS)


def test_every_kind_and_state_of_an_incident_has_words() -> None:
    assert list(words.INCIDENTS) == list(vocabulary.INCIDENT_KINDS)
    assert list(words.INCIDENT_STATES) == list(vocabulary.INCIDENT_STATES)


def test_every_outcome_has_words() -> None:
    assert set(words.OUTCOMES) == {*vocabulary.OUTCOMES, "accumulated_not_finite"}


def test_a_good_step_with_non_finite_gradients_is_of_a_bad_kind() -> None:
    assert set(step_answers.NOT_FINITE_KINDS) == vocabulary.GOOD_OUTCOMES
    assert vocabulary.GOOD_OUTCOMES.isdisjoint(step_answers.NOT_FINITE_KINDS.values())


def test_every_event_kind_has_words() -> None:
    assert list(words.EVENTS) == list(vocabulary.EVENT_KINDS)


def test_every_state_has_words() -> None:
    assert set(words.STATES) == set(get_args(vocabulary.AttemptState))


def test_every_reason_of_a_skip_has_words() -> None:
    assert set(words.REASONS) == set(vocabulary.SKIP_REASONS.values())


def test_every_reason_of_a_loss_has_words() -> None:
    assert set(words.LOST_REASONS) == set(vocabulary.LOST_REASONS)


def test_no_reason_of_a_loss_is_called_as_a_health() -> None:
    """All steps of a starved run may be lost as skipped: "0 starved" would deny its health."""
    healths = {word.word.lower() for word in words.HEALTHS.values()}
    assert healths.isdisjoint(word.word.lower() for word in words.LOST_REASONS.values())


def test_every_gauge_has_words() -> None:
    assert set(words.GAUGES) == set(Gauges.model_fields)


def test_every_condition_of_the_store_has_words() -> None:
    assert set(words.STORE_CONDITIONS) == set(get_args(Condition))


def test_a_meaning_is_one_sentence_without_its_period() -> None:
    for name, (_, group) in words.VOCABULARY.items():
        for key, word in group.items():
            assert word.word, (name, key)
            assert word.meaning, (name, key)
            assert not word.meaning.endswith("."), (name, key)
            assert word.meaning[0].isupper() or word.meaning.startswith("skip_spikes"), (name, key)
