"""Held-out loss and samples in the loop, and the refusal to evaluate on what is trained on.

Never: choosing documents (that is `prep/filters`).
"""

from typing import TYPE_CHECKING

from crystalmix.prep.runtime.lazy_names import lazy_names

if TYPE_CHECKING:
    from crystalmix.train.evaluation import chat_answer, code_tasks, evaluate, harness, held_out
    from crystalmix.train.evaluation.code_tasks import CodeTask
    from crystalmix.train.evaluation.evaluate import EvaluationSettings, Evaluator
    from crystalmix.train.evaluation.harness import Task, TaskSettings, Texts

__getattr__, __dir__ = lazy_names(__name__)
