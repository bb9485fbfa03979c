"""What is logged: means over items, information in nats, and alarms that come once and name a fix."""

import math

import pytest
import torch
from accelerate import Accelerator

from modeling_infoxlm.objectives import LossOutput
from modeling_infoxlm.training.meter import ContrastAlarm, LossMeter


@pytest.fixture
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


def output(loss_sum: float, num_items: int | torch.Tensor, **metrics: float) -> LossOutput:
    values = {name: torch.tensor(value) for name, value in metrics.items()}
    return LossOutput(torch.tensor(loss_sum, requires_grad=True), num_items, values)


def test_means_are_over_items_not_over_batches(accelerator: Accelerator) -> None:
    meter, words = LossMeter(), {"log_candidates": math.log(100)}
    meter.add(
        {
            "mlm": output(6.0, 3, **words),
            "xlco": output(4.0, 1, accuracy=1.0, log_candidates=2.0),
        }
    )
    meter.add(
        {
            "mlm": output(1.0, 1, **words),
            "xlco": output(2.0, 3, accuracy=0.0, log_candidates=4.0),
        }
    )
    assert meter.pop(accelerator) == pytest.approx(
        {
            "loss/mlm": 7 / 4,
            "information/mlm": math.log(100) - 7 / 4,
            "loss/xlco": 6 / 4,
            "xlco/accuracy": 1 / 4,
            "information/xlco": (1 * 2.0 + 3 * 4.0) / 4 - 6 / 4,
        }
    )


def test_guessing_evenly_carries_no_information_and_certainty_all_of_it(accelerator: Accelerator) -> None:
    meter = LossMeter()
    certain = output(0.0, 4, log_candidates=math.log(17))
    meter.add({"mlm": output(5 * math.log(50), 5, log_candidates=math.log(50)), "xlco": certain})
    logs = meter.pop(accelerator)
    assert logs["information/mlm"] == pytest.approx(0, abs=1e-6)
    assert logs["information/xlco"] == pytest.approx(math.log(17), abs=1e-6)


def test_no_information_is_claimed_of_a_loss_that_is_no_choice_among_candidates(
    accelerator: Accelerator,
) -> None:
    meter = LossMeter()
    meter.add({"distance": output(6.0, torch.tensor(3))})
    assert meter.pop(accelerator) == {"loss/distance": 2.0}


def test_pop_begins_anew(accelerator: Accelerator) -> None:
    meter = LossMeter()
    meter.add({"mlm": output(100.0, 1)})
    meter.pop(accelerator)
    assert meter.pop(accelerator) == {}
    meter.add({"mlm": output(2.0, 2)})
    assert meter.pop(accelerator)["loss/mlm"] == 1.0


def test_a_stream_without_items_logs_zero_not_nan(accelerator: Accelerator) -> None:
    meter = LossMeter()
    meter.add({"tlm": output(0.0, 0)})
    assert meter.pop(accelerator)["loss/tlm"] == 0.0


def test_sums_keep_no_graph(accelerator: Accelerator) -> None:
    meter = LossMeter()
    meter.add({"mlm": output(2.0, 2)})
    assert not any(value.requires_grad for value in meter.state_dict(accelerator).values())


def test_means_do_not_depend_on_where_the_run_was_resumed(accelerator: Accelerator) -> None:
    batches = [output(1e6 / 3, 3, accuracy=1 / 3), *(output(1 / 3, 7, accuracy=2 / 3) for _ in range(50))]
    straight, before, after = (LossMeter() for _ in range(3))
    for batch in batches:
        straight.add({"xlco": batch})
    for batch in batches[:20]:
        before.add({"xlco": batch})
    after.load_state_dict(before.state_dict(accelerator))
    for batch in batches[20:]:
        after.add({"xlco": batch})
    assert after.pop(accelerator) == straight.pop(accelerator)


def test_small_losses_after_a_large_sum_count(accelerator: Accelerator) -> None:
    """In fp32 16,777,216 + 1 is 16,777,216."""
    meter = LossMeter()
    for loss_sum in (2.0**24, *[1.0] * 8):
        meter.add({"mlm": output(loss_sum, 1)})
    assert meter.pop(accelerator)["loss/mlm"] == (2**24 + 8) / 9


def test_a_saved_state_is_not_changed_by_what_comes_later(accelerator: Accelerator) -> None:
    meter = LossMeter()
    meter.add({"mlm": output(2.0, 2)})
    saved = meter.state_dict(accelerator)
    meter.add({"mlm": output(5.0, 1)})
    assert saved["loss/mlm"] == 2.0


# ---------------------------------------------------------------------------- the alarm

HEALTHY = {
    "xlco/query_std": 0.8,
    "xlco/key_std": 0.8,
    "xlco/accuracy": 0.9,
    "xlco/in_batch_accuracy": 0.8,
    "xlco/key_norm": 3.0,
    "xlco/queue_norm": 2.5,
    "xlco/queue_filled": 1.0,
}
COLLAPSED = {**HEALTHY, "xlco/query_std": 0.05}
SHORTCUT = {**HEALTHY, "xlco/accuracy": 0.95, "xlco/in_batch_accuracy": 0.25}


def test_a_healthy_contrast_and_a_run_without_one_are_silent() -> None:
    assert ContrastAlarm().check(HEALTHY) == []
    assert ContrastAlarm().check({"loss/mlm": 3.0}) == []


@pytest.mark.parametrize("logs", [COLLAPSED, SHORTCUT], ids=["collapse", "shortcut"])
def test_warns_once_when_it_begins_and_again_when_it_comes_back(logs: dict[str, float]) -> None:
    alarm = ContrastAlarm()
    assert [len(alarm.check(step)) for step in (HEALTHY, logs, logs, HEALTHY, logs)] == [0, 1, 0, 0, 1]


def test_a_second_fault_is_told_while_the_first_lasts() -> None:
    alarm = ContrastAlarm()
    assert len(alarm.check(COLLAPSED)) == 1
    (message,) = alarm.check({**COLLAPSED, "xlco/key_std": 0.01})
    assert message.startswith("the key vectors")


def test_entries_in_a_row_that_show_a_collapse_are_counted() -> None:
    alarm, counts = ContrastAlarm(), []
    for logs in (
        HEALTHY,
        COLLAPSED,
        {**HEALTHY, "xlco/key_std": 0.09},
        SHORTCUT,
        COLLAPSED,
        {"loss/mlm": 3.0},
    ):
        alarm.check(logs)
        counts.append(alarm.collapsed_logs)
    assert counts == [0, 1, 2, 0, 1, 0]


def test_collapse_names_side_spread_and_fix() -> None:
    assert ContrastAlarm().check(COLLAPSED) == [
        "the query vectors have nearly collapsed (spread 0.050 of 1): sentences can hardly be told apart. "
        "From scratch, mean pooling (--xlco_pooling mean) spreads sooner; else lower the learning rate."
    ]


def test_shortcut_names_values_and_fix() -> None:
    assert ContrastAlarm().check(SHORTCUT) == [
        "the contrast is being solved by a shortcut: accuracy 0.95 among queued keys but 0.25 among the keys "
        "of the batch (mean length 3.00 of fresh keys, 2.50 of queued ones). Try --xlco_similarity cosine, "
        "a higher --momentum or --xlco_in_batch_negatives true."
    ]


def test_a_young_queue_is_no_shortcut() -> None:
    """Among the few keys of the first steps accuracy is high by itself."""
    assert ContrastAlarm().check({**SHORTCUT, "xlco/queue_filled": 0.49}) == []
    assert len(ContrastAlarm().check({**SHORTCUT, "xlco/queue_filled": 0.5})) == 1
