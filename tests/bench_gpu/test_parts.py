"""What is left where time ends: what is right, then the largest claims."""

from bench.gpu.parts import PARTS

#: Those with a target of ours.
CLAIMS = ["large", "small", "narrow", "nerf", "small-graph", "project", "update", "project-cuda",
          "update-cuda", "promises"]  # fmt: skip


def test_the_largest_claims_come_first_but_after_what_is_right():
    assert list(PARTS)[:15] == ["environment", "build", "vectors", "tests", "ceilings", *CLAIMS]
    assert list(PARTS)[15] == "sanitizer"


def test_what_is_right_leaves_time_for_the_steps():
    before = list(PARTS)[: list(PARTS).index("large")]
    usual = 480 - sum(PARTS[name].most for name in before)
    assert usual >= PARTS["large"].most + PARTS["small"].most
    assert (PARTS["tests"].most, PARTS["sanitizer"].most) == (120, 40)
