"""Training the language model head of an encoder that has lost its own."""

import pytest
from tiny_trainer import Make, parameters


def test_a_frozen_encoder_stays_as_it_is_while_its_head_learns(make: Make) -> None:
    trainer = make(objectives=("mlm", "tlm"), freeze_encoder=True, max_steps=3)
    before = parameters(trainer.model)
    trainer.train()
    after = parameters(trainer.model)
    changed = {name for name in before if not before[name].equal(after[name])}
    assert changed == {
        *("lm_head.dense.weight", "lm_head.dense.bias", "lm_head.layer_norm.weight"),
        *("lm_head.layer_norm.bias", "lm_head.bias", "lm_head.decoder.bias"),
    }


def test_a_run_in_which_nothing_would_learn_is_refused(make: Make) -> None:
    model = make().model
    model.config.xlco_use_projection = False
    with pytest.raises(ValueError, match="nothing to train"):
        make(objectives=("xlco",), freeze_encoder=True, model=type(model)(model.config))
