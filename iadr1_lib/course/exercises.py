"""Exercises: what the check of one does as long as there is no answer."""

from __future__ import annotations


def answered(answer: object, advice: str, required: bool) -> bool:
    """Whether there is an answer to check, which is any but the stub's None.

    Without one a learner gets the advice as an error. The batch, in which nobody answers, passes `required=False`
    (the notebooks' parameter `exercises`) and gets a line.

    Raises:
        AssertionError: there is no answer and one is required.
    """
    __tracebackhide__ = True  # IPython then shows the learner's cell and not this function
    if answer is not None:
        return True
    if required:
        raise AssertionError(f"not answered yet. {advice}")
    print("exercise not answered, so not checked")
    return False
