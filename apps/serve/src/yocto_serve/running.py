"""A stand-in for yocto_model.RunningBatch, one row after the other."""

from collections import deque
from typing import Any


class Job:
    def __init__(self, stream: Any) -> None:
        self.stream = stream

    @property
    def finish_reason(self) -> Any:
        return self.stream.finish_reason

    @property
    def prompt_ids(self) -> Any:
        return self.stream.prompt_ids

    @property
    def tokens(self) -> Any:
        return self.stream.tokens


class RunningBatch:
    def __init__(
        self, model: Any, tokenizer: Any, *, end_ids: Any = (), max_rows: int = 16
    ) -> None:
        from yocto_model import TextGenerator

        self.generator = TextGenerator(model, tokenizer, end_ids=end_ids)
        self.max_rows = max_rows
        self.jobs: deque[Job] = deque()

    def add(self, prompt_ids: Any, max_new_tokens: int, **options: Any) -> Job:
        job = Job(self.generator.stream(prompt_ids, max_new_tokens, **options))
        if job.finish_reason is None:
            self.jobs.append(job)
        return job

    def step(self) -> list[tuple[Job, list[Any]]]:
        out = []
        for job in list(self.jobs)[: self.max_rows]:
            ids, logits = next(job.stream.steps)
            out.append((job, job.stream.add(ids[0], logits[0])))
            if job.finish_reason is not None:
                self.jobs.remove(job)
        return out

    def cancel(self, job: Job) -> None:
        if job in self.jobs:
            self.jobs.remove(job)

    @property
    def idle(self) -> bool:
        return not self.jobs
