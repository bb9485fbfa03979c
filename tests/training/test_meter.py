"""What is logged: means over items, information in nats, and alarms that come once and name a fix."""

import math
import re

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
    contrast = output(4.0, 1, accuracy=1.0, log_candidates=2.0)
    # A loss that is no choice among candidates claims no information; no items give zero and not NaN.
    others = {"distance": output(6.0, torch.tensor(3)), "tlm": output(0.0, 0)}
    meter.add({"mlm": output(6.0, 3, **words), "xlco": contrast, **others})
    saved = meter.state_dict(accelerator)
    meter.add({"mlm": output(1.0, 1, **words), "xlco": output(2.0, 3, accuracy=0.0, log_candidates=4.0)})
    assert saved["loss/mlm"] == 6.0, "what is saved is not changed by what comes later"
    assert not any(value.requires_grad for value in meter.state_dict(accelerator).values())
    assert meter.pop(accelerator) == pytest.approx(
        {
            "loss/mlm": 7 / 4,
            "information/mlm": math.log(100) - 7 / 4,
            "loss/xlco": 6 / 4,
            "xlco/accuracy": 1 / 4,
            "information/xlco": (1 * 2.0 + 3 * 4.0) / 4 - 6 / 4,
            "loss/distance": 2.0,
            "loss/tlm": 0.0,
        }
    )
    assert meter.pop(accelerator) == {}


def test_small_losses_after_a_large_sum_count(accelerator: Accelerator) -> None:
    """In fp32 16,777,216 + 1 is 16,777,216."""
    meter = LossMeter()
    for loss_sum in (2.0**24, *[1.0] * 8):
        meter.add({"mlm": output(loss_sum, 1)})
    assert meter.pop(accelerator)["loss/mlm"] == (2**24 + 8) / 9


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


@pytest.mark.parametrize(
    ("logs", "says"),
    [
        (COLLAPSED, "the query vectors .*spread 0.050 of 1.*--xlco_pooling mean"),
        (SHORTCUT, "accuracy 0.95 .* but 0.25 .*3.00 of fresh keys, 2.50 of queued.*_similarity cosine"),
    ],
    ids=["collapse", "shortcut"],
)
def test_warns_once_when_it_begins_and_again_when_it_comes_back(logs: dict[str, float], says: str) -> None:
    alarm = ContrastAlarm()
    assert alarm.check({"loss/mlm": 3.0}) == []
    told = [alarm.check(step) for step in (HEALTHY, logs, logs, HEALTHY, logs)]
    assert [len(messages) for messages in told] == [0, 1, 0, 0, 1] and re.search(says, told[1][0])
    (message,) = alarm.check({**COLLAPSED, **logs, "xlco/key_std": 0.01})  # while the first fault lasts
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


def test_a_young_queue_is_no_shortcut() -> None:
    """Among the few keys of the first steps accuracy is high by itself."""
    assert ContrastAlarm().check({**SHORTCUT, "xlco/queue_filled": 0.49}) == []
    assert len(ContrastAlarm().check({**SHORTCUT, "xlco/queue_filled": 0.5})) == 1
