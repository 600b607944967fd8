"""The digits network at three budgets: bytes and accuracy.

    python -m examples.digits_budgets [--out FOLDER] [--target intel-vnni]

Planned on the calibration images only; the accuracy is that of the compiled files on the test
images.
"""

from __future__ import annotations

from advisor.demo import digits
from examples.budgets import parse_arguments, plan_at_budgets, to_markdown

BUDGETS = ("size=300kB", "size=150kB", "size=100kB")


def main() -> None:
    """Plan, compile, verify, print the table."""
    arguments = parse_arguments("Digits at three budgets.", "build/digits")
    images = digits.data()
    rows = plan_at_budgets(
        digits.load(),
        target=arguments.target,
        budgets=BUDGETS,
        inputs=images.calibration[:1],
        calibration=images.calibration_batches(),
        metric=images.calibration_correct,
        quality=lambda encode: {"test accuracy": f"{images.accuracy(encode):.2%}"},
        out=arguments.out,
    )
    print(to_markdown(rows))


if __name__ == "__main__":
    main()
