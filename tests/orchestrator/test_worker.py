"""Which branches are given up: those whose own loss does not fall, and no others."""

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.worker import hopeless

LOSSES = st.lists(st.floats(0.01, 10), min_size=1, max_size=50)


def curve(losses, every=2):
    return [(every * (i + 1), loss) for i, loss in enumerate(losses)]


def test_a_loss_that_stays_where_it_began():
    reason = hopeless(curve([3.0] * 13), 100)
    assert reason == "given up at step 26 of 100: its loss is 3.000, and was 3.000 at the start"
    assert not hopeless(curve([3.0] * 12), 100)  # too early to say
    assert not hopeless(curve([3.0] * 5, every=10), 100)  # too few to say
    assert not hopeless(curve([3.0, *[2.9] * 12]), 100)


@given(LOSSES, st.floats(0.5, 2))
def test_the_scale_of_a_loss_does_not_matter(losses, scale):
    found = hopeless(curve(losses), 100)
    scaled = hopeless(curve([scale * loss for loss in losses]), 100)
    close = abs(sum(losses[-5:]) / 5 - losses[0]) < 1e-9
    assert close or bool(found) == bool(scaled)


@given(LOSSES)
def test_a_loss_that_has_fallen_throughout_is_never_given_up(losses):
    falling = sorted(set(losses), reverse=True)
    assert not hopeless(curve(falling), 100)
