"""What the eviction methods have in common: a budget, protected tokens, and one `Evict`.

A method scores the prompt's keys when the prompt has been computed; each KV head keeps those with the
highest scores, and the protected ones. The first token of the answer comes from the unedited prompt;
only later rows miss what was evicted. Survivors keep their positions.
"""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Self

from pydantic import ConfigDict, Field, model_validator
from pydantic.config import JsonValue
from pydantic_core import PydanticCustomError

from heed_interventions.method import CacheClass, Method
from heed_interventions.selectors import share_of
from heed_interventions.views import ModelView, RequestView
from heed_kernels.edits import OPEN, Edit, Rows
from heed_kernels.evict import Evict, Score, Share

Sinks = Annotated[
    int, Field(ge=0, le=256, description="Initial prompt tokens that are always kept.")
]
Recent = Annotated[
    int,
    Field(
        ge=0, lt=2**31 - 1, description="Last tokens that are always kept; null: the method's own."
    ),
]

_EITHER: list[JsonValue] = [
    {"required": [one], "properties": {one: {"type": kind}, other: {"type": "null"}}}
    for one, kind, other in (("budget", "integer", "keep"), ("keep", "number", "budget"))
]


@dataclass(frozen=True)
class Budget:
    """Keys that a KV head of each layer keeps, on the average where a method shares them out.

    prompt: P, in tokens. count: keys kept, protected ones included. sinks, recent: the protected ones.
    """

    prompt: int
    count: int
    sinks: int
    recent: int

    @property
    def protected(self) -> int:
        """Protected keys of the prompt."""
        return min(self.prompt, self.sinks + self.recent)

    @property
    def free(self) -> int:
        """Kept keys that are chosen by their scores."""
        return self.count - self.protected

    @property
    def candidates(self) -> int:
        """Keys to choose from."""
        return self.prompt - self.protected


class EvictionMethod(Method):
    """A method that evicts. A subclass says how keys are scored, and how layers and heads share."""

    model_config = ConfigDict(json_schema_extra={"oneOf": _EITHER})

    cache = CacheClass.SHARED
    evicts = True
    exclusive = ("budget", "keep")
    every_row: ClassVar[bool] = False
    """Whether every prompt row has to be scored, so that none may come out of the prefix cache."""

    budget: int | None = Field(
        default=None,
        ge=1,
        lt=2**31 - 1,
        description="Keys kept per layer and KV head, protected ones included.",
    )
    keep: float | None = Field(
        default=None, gt=0, le=1, description="Share of the prompt kept, in place of `budget`."
    )
    sinks: Sinks = 0
    recent: Recent | None = None

    @abstractmethod
    def score(self, budget: Budget) -> Score:
        """What a key is worth."""

    def share(self, budget: Budget, model: ModelView) -> Share | None:
        """How KV heads or layers share the budget by what was found; None where all get the same."""
        return None

    def counts(self, budget: Budget, model: ModelView) -> tuple[int, ...]:
        """Keys that each layer keeps in a KV head, on the average of its heads."""
        return (budget.count,) * model.layers

    def most(self, budget: Budget, model: ModelView) -> int:
        """An upper bound of what any head of any layer keeps."""
        return max(self.counts(budget, model))

    def shared_out(self, budget: Budget, model: ModelView) -> dict[str, object]:
        """What the report says of how layers or heads share, as far as it is known beforehand."""
        return {}

    def own_recent(self, count: int) -> int:
        """`recent` where the request does not say; count: the budget in tokens."""
        return 0

    def window_length(self) -> int:
        """Last prompt rows that are scored together, and whose keys are kept."""
        return 0

    def evicts_in_decode(self) -> bool:
        """Whether it goes on evicting while the answer is generated."""
        return False

    def check(self, request: RequestView) -> None:
        """What the method needs of the model, beyond the budget. Raises `InterventionError`."""

    def is_neutral(self, model: ModelView) -> bool:
        return self.keep == 1 or (self.budget is not None and self.budget >= model.max_length)

    def publication_limit(self, prompt_length: int) -> int:
        return prompt_length

    def edits(self, request: RequestView) -> Iterator[Edit]:
        model, budget = request.model, self.resolved(request.prompt.length)
        self.check(request)
        idle = self._idle(budget, model)
        if idle is not None:
            request.report["reason"] = idle
            return
        window = self.window_length()
        if model.longest_step is not None and window > model.longest_step:
            raise request.error(
                "window",
                f"a window of {window} rows does not fit into one step of at most {model.longest_step}",
                "context",
            )
        request.report.update(budget=budget.count, sinks=budget.sinks, recent=budget.recent)
        request.report.update(self.shared_out(budget, model))
        yield Evict(
            score=self.score(budget),
            share=self.share(budget, model),
            counts=self.counts(budget, model),
            most=self.most(budget, model),
            sinks=budget.sinks,
            recent=budget.recent,
            again=self.evicts_in_decode(),
            together=max(1, window),
            every_row=self.every_row,
            rows=Rows(request.prompt.length, OPEN),
            source=request.source,
        )

    def resolved(self, prompt: int) -> Budget:
        """The budget for a prompt of `prompt` tokens; a share is rounded down, but never below what is
        protected."""
        share = max(1, share_of(self.keep or 0, prompt))
        count = self.budget or share
        recent = self._recent(count)
        return Budget(prompt, self.budget or max(share, self.sinks + recent), self.sinks, recent)

    def _recent(self, count: int) -> int:
        recent = self.own_recent(count) if self.recent is None else self.recent
        return max(recent, self.window_length())

    def _idle(self, budget: Budget, model: ModelView) -> str | None:
        """Why nothing is evicted; None where something may be."""
        prompt, window = budget.prompt, self.window_length()
        if self.keep == 1:
            return "with `keep` 1 all keys are kept"
        if window > prompt:
            return f"the window of {window} rows is longer than the prompt of {prompt} tokens"
        if budget.count < prompt:
            return None
        if not self.evicts_in_decode() or self.budget is None:
            return f"{budget.count} keys are kept, and the prompt has {prompt}"
        if budget.count >= model.max_length:
            return f"{budget.count} keys are kept, and no sequence has more than {model.max_length}"
        return None

    @model_validator(mode="after")
    def _one_budget(self) -> Self:
        if self.budget is None and self.keep is None:
            raise PydanticCustomError(
                "missing_field", "or `keep` is needed, and both are missing", {"field": "budget"}
            )
        if self.budget is not None:
            recent = self._recent(self.budget)
            if self.sinks + recent > self.budget:
                raise PydanticCustomError(
                    "out_of_bounds",
                    "must hold the protected tokens, {sinks} first and {recent} last ones; "
                    "{budget} do not",
                    {
                        "field": "budget",
                        "sinks": self.sinks,
                        "recent": recent,
                        "budget": self.budget,
                    },
                )
        return self
