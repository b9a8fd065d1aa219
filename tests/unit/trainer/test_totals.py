"""What validation chooses and when a run ends early, against written-out epochs."""

import dataclasses

import pytest

from trainer.totals import Selection, Totals, restore, to_json


def selection_after(*epochs):
    """(balanced accuracy, loss) of each epoch of 10 steps."""
    chosen = Selection()
    for i, (acc, loss) in enumerate(epochs, start=1):
        chosen.note(10 * i, acc, loss)
    return chosen


@pytest.mark.parametrize(
    ("epochs", "best_step"),
    [
        ([(0.0, 9.0)], 10),  # the first is the best so far, however bad
        ([(0.2, 1.0), (0.4, 2.0), (0.3, 0.5)], 20),  # accuracy decides
        ([(0.4, 2.0), (0.4, 1.0), (0.4, 1.5)], 20),  # of equal ones the lower loss
        ([(0.4, 1.0), (0.4, 1.0)], 10),  # of equal ones in both the earlier
    ],
)
def test_the_best_epoch_has_the_highest_accuracy_then_the_lowest_loss_then_comes_first(epochs, best_step):
    assert selection_after(*epochs).best_step == best_step


def test_epochs_without_a_lower_loss_are_counted_from_the_lowest_on():
    losses = [1.0, 1.1, 0.9, 0.9, 0.95, 0.89]
    counts = [selection_after(*((0.5, loss) for loss in losses[:n])).epochs_without for n in range(1, 7)]
    assert counts == [0, 1, 0, 1, 2, 0]


def test_patience_is_spent_after_so_many_epochs_and_never_when_it_is_0():
    waiting = Selection(epochs_without=3)
    assert [waiting.is_spent(patience) for patience in (0, 1, 3, 4)] == [False, True, True, False]


def test_balanced_accuracy_is_the_mean_over_the_labels_that_occurred():
    totals = Totals()
    assert totals.epoch_balanced_acc is None
    totals.add_labels([2, 0, 1], [1, 0, 1])
    totals.add_labels([2, 0, 0], [0, 0, 0])
    assert (totals.epoch_label_counts, totals.epoch_label_correct) == ([4, 0, 1], [1, 0, 1])
    assert totals.epoch_balanced_acc == (1 / 4 + 1 / 1) / 2


def test_a_new_epoch_forgets_the_epochs_sums_and_keeps_the_runs():
    totals = Totals(
        seconds=2.0, clips=6, epoch_steps=3, epoch_loss=1.5, epoch_label_counts=[1], epoch_label_correct=[1]
    )
    totals.begin_epoch()
    assert totals == Totals(seconds=2.0, clips=6)
    totals.add_labels([1], [1])
    assert Totals().epoch_label_counts == []


def test_what_is_written_comes_back_and_what_is_missing_starts_anew():
    written = Selection(best_step=4, best_balanced_acc=1 / 3, lowest_loss=0.1, epochs_without=2)
    read = Selection(best_loss=7.0)
    restore(read, to_json(written))
    assert read == written
    partial = to_json(written)
    del partial["epochs_without"]
    restore(read, partial)
    assert read == dataclasses.replace(written, epochs_without=0)
