"""Runs notebooks in a batch: plan, parameters, execution, progress, resume.

``batch`` is not imported here: it brings papermill, which takes seconds to import, and a plan or a
mistake in a parameter file should show at once.
"""

from ollamalab.runner.parameters import Parameter
from ollamalab.runner.plan import QUICK, Notebook, Plan, Task, discover, make_plan

__all__ = ["QUICK", "Notebook", "Parameter", "Plan", "Task", "discover", "make_plan"]
