"""Which tests over large tables run on some of their cases only, so that the suite ends in minutes.

`make thorough` (or `pytest --thorough`) runs all of them. The cases that stay are spread over the table.
"""

from typing import Final

import pytest

EVERY: Final = {
    "tests/e2e/chaos/test_chaos.py::test_whatever_happens_every_number_ends_at_the_truth": 3,
    "tests/e2e/page/test_accessible.py": 3,
    "tests/e2e/test_demo.py::test_a_job_without_an_exporter_trains_on_and_says_so_once": 3,
    "tests/e2e/test_odd_ways.py": 3,
    "tests/e2e/ways/test_ways.py": 5,
    "tests/optwrap/test_adopt.py::test_an_old_checkpoint_is_gone_on_with_as_if_it_had_been_instrumented": 3,
    "tests/optwrap/test_checkpoints.py": 5,
    "tests/optwrap/test_contrib.py::test_every_contributed_optimizer_trains_in_every_wrapper": 5,
    "tests/optwrap/test_ecosystem.py": 5,
    "tests/optwrap/test_flush.py": 3,
    "tests/optwrap/test_fused.py::test_a_rejected_gradient_touches_nothing": 3,
    "tests/optwrap/test_fused.py::test_an_instrumentation_counts_the_same": 3,
    "tests/optwrap/test_fused.py::test_keeps_every_tree_as_it_is": 3,
    "tests/optwrap/test_fused.py::test_parameters_and_state_are_overwritten_in_place": 3,
    "tests/optwrap/test_fused.py::test_takes_the_steps_that_update_and_apply_take": 3,
    "tests/optwrap/test_instrument.py::test_params_and_inner_state_are_bit_for_bit_those_without_it": 3,
    "tests/optwrap/test_instrument_around.py": 3,
    "tests/optwrap/test_instrument_examples.py::test_an_example_trains_where_no_exporter_is": 3,
    "tests/optwrap/test_instrument_limits.py::test_injected_hyperparameters_are_followed_as_they_are_now": 3,
    "tests/optwrap/test_instrument_outcomes.py::test_what_is_read_off_the_states_is_what_happened": 3,
    "tests/optwrap/test_laws.py::test_finite_gradients_give_what_optax_gives": 3,
    "tests/optwrap/test_laws.py::test_jit_equals_eager": 3,
    "tests/optwrap/test_laws.py::test_works_as_the_carry_of_a_scan": 3,
    "tests/optwrap/test_laws.py::test_works_under_vmap": 3,
    "tests/optwrap/test_meshes.py::test_a_step_sends_scalars_only_and_leaves_arrays_where_they_lay": 3,
    "tests/optwrap/test_nesting.py": 3,
    "tests/optwrap/test_rejected.py": 3,
    "tests/optwrap/test_replicas.py": 3,
    "tests/optwrap/test_same_bits.py": 5,
    "tests/optwrap/test_shapes.py": 3,
    "tests/optwrap/test_shard_map.py": 3,
    "tests/optwrap/test_weighted.py": 3,
}
"""By the beginning of a test's name: of how many cases in a row of one function one stays. Odd numbers, since many
tables count by two."""


def thinned(items: list[pytest.Item]) -> tuple[list[pytest.Item], list[pytest.Item]]:
    """The tests that stay, and those that are left out. Tests without cases stay."""
    stay: list[pytest.Item] = []
    left_out: list[pytest.Item] = []
    seen: dict[str, int] = {}
    for item in items:
        function, case, _ = item.nodeid.partition("[")
        one_of = next((number for prefix, number in EVERY.items() if case and function.startswith(prefix)), 1)
        place = seen[function] = seen.get(function, -1) + 1
        (stay if place % one_of == 0 else left_out).append(item)
    return stay, left_out
